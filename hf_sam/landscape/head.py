# SPDX-License-Identifier: Apache-2.0
"""The output head of a loss, whose logits a method may replace inside of a pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from ..vector import Vector
from .data import Data
from .landscape import Landscape
from .protocol import HeadOnly, LossOf
from .update import Update

Factor = Callable[[Tensor], Tensor]
"""A function of the `()` norm of a gradient that returns the `()` factor to perturb along it."""


def gradient_at_head(at: Landscape, factor: Factor) -> Vector:
    """Return the gradient where the output head alone is perturbed: one pass, and no weight moves.

    The head's weight W stands at W + factor(|G|) G, with G = dL/dW at w. Several micro-batches
    share one perturbation, which takes a forward of each of them before the pass.

    Args:
        at: the Landscape.
        factor: a function from |G| to the factor, both `()`.
    """
    step, update = HeadStep(at.update, factor), at.update
    if len(at.data.batches) > 1:
        update.announce("ascent")
        step.gather(at.data)
    there = at.behind_head(step).gradient()
    assert step.loss is not None and update.readings.latest is not None, "the head did not run"
    at.readings["sharpness"] = update.readings.latest - step.loss
    return there


class HeadStep:
    """A `HeadTap` that goes on with the logits of the head's weight W + eps, without moving W.

    With G = dL/dW at w, eps = factor(|G|) G is a constant, and the logits become Z + H eps'. G
    needs no backward through anything but the loss: it is (dL/dZ)' H. So the gradient of a pass
    with these logits is the one at w + eps, where only the head is perturbed.

    If G is over several micro-batches, `gather` adds it up before the pass. If it is one batch's
    alone and H has fewer rows than columns, eps is never made: H eps' is a multiple of
    (H H') dL/dZ. So it takes no more memory than another copy of the logits.

    Args:
        update: the update that the pass belongs to.
        factor: a function from |G| to the factor.

    Attributes:
        loss: the loss at w, `()`, as far as the head has been seen; None before.
    """

    def __init__(self, update: Update, factor: Factor) -> None:
        self._update, self._factor = update, factor
        self._alone = update.engine.local_ascent or update.engine.ranks == 1
        self._gathering = False
        self._sum: Tensor | None = None
        self._eps: Tensor | None = None
        self.loss: Tensor | None = None

    def gather(self, data: Data) -> None:
        """Find eps for the sum of the batches' losses, by a forward of each without a graph."""
        update, self._gathering = self._update, True
        engine = update.engine
        with update.replay(), engine.passes(update.params), engine.no_sync(own=True):
            for batch, share in zip(data.batches, data.weights, strict=True):
                with suppress(HeadOnly), torch.no_grad():
                    update.backward(batch, share, head=self)
        self._gathering = False
        assert self._sum is not None, "a pass in which the head did not run"
        self._eps, self._sum = self._scaled(self._sum), None

    def __call__(self, h: Tensor, z: Tensor, loss_of: LossOf) -> Tensor:
        """Return the logits of the head's weight W + eps, in float32 if the head's are shorter."""
        # fp16 would lose the small numbers of dL/dZ; wider numbers than the head's cost time only.
        kind = torch.float32 if z.dtype == torch.float16 else z.dtype
        with _without_autocast(z.device.type):
            if self._eps is not None:
                return _onto(z, h.to(kind) @ self._eps.to(kind).T)
            cotangent = self._cotangent(z, loss_of)
            if self._alone and not self._gathering and z.shape[:-1].numel() < h.shape[-1]:
                return _onto(z, self._few_rows(h.to(kind), cotangent.to(kind)))
            rows, slopes = h.detach().flatten(0, -2), cotangent.flatten(0, -2)
            gradient = slopes.to(kind).T @ rows.to(kind)
            if self._gathering:
                # Micro-batches add up in wide numbers, as gradients of float32 weights do.
                whole = _wide(gradient)
                self._sum = whole if self._sum is None else self._sum.add_(whole)
                raise HeadOnly
            del cotangent, slopes  # as large as the logits
            return _onto(z, h.to(kind) @ self._scaled(gradient).T)

    def _cotangent(self, z: Tensor, loss_of: LossOf) -> Tensor:
        """Return dL/dZ at w, and add the loss there to that of the pass."""
        logits = _wide(z.detach()).requires_grad_()
        with torch.enable_grad():
            loss = loss_of(logits)
            (cotangent,) = torch.autograd.grad(loss, logits, allow_unused=True)
        if cotangent is None:
            raise ValueError(
                "the loss does not depend on the output of the head that was chosen: name the "
                "linear layer that makes the logits by sam_options={'head': REGEX}"
            )
        loss = loss.detach()
        self.loss = loss if self.loss is None else self.loss + loss
        return cotangent

    def _few_rows(self, h: Tensor, cotangent: Tensor) -> Tensor:
        """Return H eps', in which only the first H is a variable, from the rows' products."""
        rows, slopes = h.flatten(0, -2), cotangent.flatten(0, -2)
        products = rows @ rows.detach().T
        # |G|^2 = <dL/dZ, (H H') dL/dZ>; rounding can make it less than zero.
        square = (slopes * (products.detach() @ slopes)).sum(dtype=_wide(slopes[:0]).dtype)
        # The products are scaled, which are smaller than the logits.
        return (self._times(products, square.clamp(min=0).sqrt()) @ slopes).view_as(cotangent)

    def _scaled(self, gradient: Tensor) -> Tensor:
        """Return eps for the gradient of this process's batches."""
        if not self._alone:
            self._update.engine.average_([gradient])
        wide = _wide(gradient[:0]).dtype
        return self._times(gradient, torch.linalg.vector_norm(gradient, dtype=wide))

    def _times(self, along: Tensor, norm: Tensor) -> Tensor:
        """Return the factor for this norm of G times a tensor, and read the lengths."""
        readings = self._update.readings
        readings.loss = self.loss  # radii may ask for it
        factor = self._factor(norm)
        readings.values.setdefault("ascent_grad_norm", norm)
        length = torch.where(factor != 0, factor * norm, torch.zeros_like(norm))
        readings.values["perturbation_norm"] = length
        # Not a product alone: zero times NaN would be NaN.
        return torch.where(factor != 0, along * factor.to(along), torch.zeros_like(along))


class Cotangents:
    """Gradients of a loss by the outputs of its head, kept in one pass and used in a later one.

    The gradient of the later pass is J' C with the Jacobian J of the logits where the weights
    stand then, and the cotangents C of the earlier pass, which looked at the same batches.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor | None] = []
        self._given = 0

    def keep(self, h: Tensor, z: Tensor, loss_of: LossOf) -> Tensor:
        """Keep the cotangent of these logits, once the backward of the pass has come to it."""
        place = len(self._kept)
        self._kept.append(None)

        def note(cotangent: Tensor) -> None:
            self._kept[place] = cotangent

        if z.requires_grad:
            z.register_hook(note)
        return z

    def give(self, h: Tensor, z: Tensor, loss_of: LossOf) -> Tensor:
        """Have the backward of the pass go on from here with the cotangent that was kept."""
        cotangent, self._kept[self._given] = self._kept[self._given], None
        self._given += 1
        if z.requires_grad and cotangent is not None:
            z.register_hook(lambda _: cotangent)
        return z


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context in which products have the dtype of their factors."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _onto(z: Tensor, change: Tensor) -> Tensor:
    """Return z + change, wide, in the storage of the change: logits may be most of the memory."""
    return _wide(change).add_(z)


def _wide(values: Tensor) -> Tensor:
    """Return values in float32 at least, because 16 bits would round a perturbation away."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
