# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed with ZeRO-1 or ZeRO-2.

It does not see the passes; one backward hands it the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from ..landscape import Averaging, Replay
from .accelerated import AcceleratedEngine
from .precision import LossScaling

if TYPE_CHECKING:
    from accelerate import Accelerator


class Handover(torch.autograd.Function):
    """A loss of zero whose gradient is the update: it moves into the parameters' backward hooks."""

    @staticmethod
    def forward(ctx: Any, update: list[Tensor], *params: Tensor) -> Tensor:
        """Keep the update, one tensor per parameter, which is consumed; return `()` zero."""
        ctx.update, ctx.kinds = update, [p.dtype for p in params]
        return torch.zeros((), device=params[0].device)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        """Return the update times the loss scale, rounded to what the parameters are stored in."""
        return None, *(ctx.update.pop(0).mul_(scale).to(kind) for kind in ctx.kinds)


class Identity(nn.Module):
    """A module whose output is the loss that it is given."""

    def forward(self, loss: Tensor) -> Tensor:
        """Return the loss."""
        return loss


class DeepSpeedEngine(AcceleratedEngine):
    """What a Landscape needs under DeepSpeed with ZeRO-1 or ZeRO-2.

    DeepSpeed takes gradients away as backward computes them, and steps inside of it. So the passes
    of a method call the module without DeepSpeed's engine around it and `torch.autograd.grad`,
    which no hook of DeepSpeed sees; ranks average what they have to themselves. The update then
    goes to DeepSpeed as the gradient of its one backward of this step. Clipping, its loss scale,
    the fp32 weights, partitions and a step skipped by overflow stay its own, and by then the
    weights have returned.

    Args:
        accelerator: the Trainer's.
        model: DeepSpeed's engine.
        replay: random numbers and statistics.
        local_ascent: whether a gradient that only serves to perturb stays this rank's own.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, replay: Replay, local_ascent: bool
    ) -> None:
        super().__init__(accelerator, model.module, replay, local_ascent)
        self._engine = model
        self._scaling = LossScaling(self._scale)

    def _scale(self) -> Tensor | None:
        """Return the `()` factor that DeepSpeed puts on losses in fp16, None without."""
        if not self._engine.fp16_enabled():
            return None
        return torch.tensor(float(self._engine.optimizer.cur_scale), device=self._engine.device)

    def params(self, optimizer: Any) -> list[Tensor]:
        """Return the trainable parameters, in the order of the optimizer's flat partitions."""
        zero = self._engine.optimizer
        groups = getattr(zero, "bit16_groups", None) or zero.bf16_groups
        return [p for group in groups for p in group]

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return who averages a gradient: ranks do it after a backward, never in it."""
        who = super().averaging(wanted, to_perturb=to_perturb, partial=partial)
        return Averaging.AFTER_PASS if who is Averaging.IN_BACKWARD else who

    @contextmanager
    def no_sync(self, own: bool = False) -> Iterator[None]:
        """Surround a pass, none of which DeepSpeed sees."""
        yield

    @contextmanager
    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> Iterator[None]:
        """Surround passes whose gradients are added to `.grad` without a hook's notice."""
        for param in self.outside:
            param.grad = None
        asked = only or [True] * len(params)
        subset = [p for p, yes in zip(params, asked, strict=True) if yes and p.requires_grad]
        with self._backward_is(partial(self._add_gradients, subset)):
            yield

    def _add_gradients(self, params: list[Tensor], loss: Tensor, **_: Any) -> None:
        scale = self._scaling.scale
        loss = loss if scale is None else loss * scale
        grads = torch.autograd.grad(loss, params, allow_unused=True) if params else ()
        for param, grad in zip(params, grads, strict=True):
            if grad is not None:
                param.grad = grad if param.grad is None else param.grad.add_(grad)

    def take_grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the gradients, unscaled.

        Those of weights in fp16 become float32: unscaled they would vanish in fp16.
        """
        if self._scaling.scale is None:
            return super().take_grads(params)
        grads = [None if p.grad is None else p.grad.float() for p in params]
        for p in params:
            p.grad = None
        self._scaling.unscale_(grads)
        return grads

    def _zeros(self, param: Tensor) -> Tensor:
        """Return a gradient of zeros, as `take_grads` would give it."""
        kind = param.dtype if self._scaling.scale is None else torch.float32
        return torch.zeros_like(param, dtype=kind, requires_grad=False)

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Hand the update to DeepSpeed, which steps; `update` is consumed.

        Returns:
            As `Engine.give`. An overflow in any pass of any rank makes the update NaN, on which
            DeepSpeed skips its step.
        """
        overflow = self._scaling.overflow()
        pairs = [(p, u) for p, u in zip(params, update, strict=True) if u is not None]
        if overflow is not None:
            if self.ranks > 1:
                distributed.all_reduce(overflow, distributed.ReduceOp.MAX)
            for _, u in pairs:
                u.mul_(torch.where(overflow > 0, math.nan, 1.0))
        loss = Handover.apply([u for _, u in pairs], *(p for p, _ in pairs))
        self._accelerator.backward(self._through_engine(loss), scale_wrt_gas=False)
        return None if overflow is None else overflow > 0

    def _through_engine(self, loss: Tensor) -> Tensor:
        """Return the loss as an output of DeepSpeed's engine, which prepares its backward then."""
        module, self._engine.module = self._engine.module, Identity()
        try:
            return self._engine(loss)
        finally:
            self._engine.module = module
