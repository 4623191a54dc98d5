# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed with ZeRO-1 or ZeRO-2, which gets the update by one backward and sees no pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from ..landscape import Averaging, Replay
from ..vector import Numbers
from .accelerated import AcceleratedEngine
from .precision import LossScaling

if TYPE_CHECKING:
    from accelerate import Accelerator


class Handover(torch.autograd.Function):
    """A loss of zero whose gradient is the update, so that backward hooks receive the update."""

    @staticmethod
    def forward(ctx: Any, update: list[Tensor], *params: Tensor) -> Tensor:
        """Keep the update, one tensor per parameter, and return a `()` zero."""
        ctx.update, ctx.kinds = update, [p.dtype for p in params]
        return torch.zeros((), device=params[0].device)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        """Return the update, multiplied by the loss scale, in the dtypes of the parameters."""
        # Popped, so that each tensor is freed as soon as DeepSpeed has taken it.
        return None, *(ctx.update.pop(0).mul_(scale).to(kind) for kind in ctx.kinds)


class Identity(nn.Module):
    """A module whose output is its input."""

    def forward(self, loss: Tensor) -> Tensor:
        """Return the loss that is given."""
        return loss


class DeepSpeedEngine(AcceleratedEngine):
    """The engine under DeepSpeed with ZeRO-1 or ZeRO-2.

    DeepSpeed takes gradients away while backward computes them, and steps inside of backward. So
    the passes of a method call the module without DeepSpeed's engine around it, and use
    `torch.autograd.grad`, which triggers no hook of DeepSpeed. The ranks average these gradients
    themselves. When the weights are restored, DeepSpeed gets the update as the gradient of the only
    backward that it runs in this step. Clipping, the loss scale, the fp32 weights, the partitions
    and the skipping of a step after an overflow stay DeepSpeed's own.

    Args:
        accelerator: the Trainer's accelerator.
        model: DeepSpeed's engine.
        replay: the state that later passes of an update repeat.
        local_ascent: whether each rank keeps a gradient of its own if it only perturbs with it.
    """

    replicated = False

    def __init__(
        self, accelerator: Accelerator, model: Any, replay: Replay, local_ascent: bool
    ) -> None:
        super().__init__(accelerator, model.module, replay, local_ascent)
        self._engine = model
        self._scaling = LossScaling(self._scale)

    def _scale(self) -> Tensor | None:
        """Return the `()` factor by which DeepSpeed scales losses in fp16, or None."""
        if not self._engine.fp16_enabled():
            return None
        return torch.tensor(float(self._engine.optimizer.cur_scale), device=self._engine.device)

    def params(self, optimizer: Any) -> list[Tensor]:
        """Return the trainable parameters, in the order of the optimizer's flat partitions."""
        zero = self._engine.optimizer  # ZeRO's optimizers have one of two names for the weights
        groups = getattr(zero, "bit16_groups", None) or zero.bf16_groups
        return [p for group in groups for p in group]

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return who averages a gradient; no backward of a pass communicates."""
        who = super().averaging(wanted, to_perturb=to_perturb, partial=partial)
        return Averaging.AFTER_PASS if who is Averaging.IN_BACKWARD else who

    @contextmanager
    def no_sync(self, own: bool = False) -> Iterator[None]:
        """Surround a pass, in which DeepSpeed does not communicate anyway."""
        yield

    @contextmanager
    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> Iterator[None]:
        """Surround passes whose gradients are added to `.grad` without triggering hooks."""
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

        The gradients of fp16 weights become float32, because they would underflow unscaled in fp16.
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

    @torch.no_grad()
    def scale_(self, params: Sequence[Tensor], factors: Numbers) -> None:
        """Multiply parameters by `()` factors in place, for good; None leaves one alone."""
        for param, factor in zip(params, factors, strict=True):
            if factor is not None:
                _keep(param, _kept(param).mul_(factor))

    @torch.no_grad()
    def move_(self, params: Sequence[Tensor], step: Sequence[Tensor | None], scale: float) -> None:
        """Add `scale` times a step to the parameters in place, for good; None leaves one alone."""
        for param, by in zip(params, step, strict=True):
            if by is not None:
                _keep(param, _kept(param).add_(by, alpha=scale))

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Hand the update to DeepSpeed, which then steps. It consumes `update`.

        Returns:
            As `Engine.give`. An overflow in any pass of any rank makes the update NaN, so that
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
        """Return the loss as an output of DeepSpeed's engine, which then prepares its backward."""
        # The module is replaced for this one call, so that the forward computes nothing.
        module, self._engine.module = self._engine.module, Identity()
        try:
            return self._engine(loss)
        finally:
            self._engine.module = module


def _kept(param: Tensor) -> Tensor:
    """Return a copy of a weight as the optimizer keeps it, in float32 and in parts on all ranks."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole: Tensor = safe_get_full_fp32_param(param)
    return whole


def _keep(param: Tensor, value: Tensor) -> None:
    """Change a weight where the optimizer keeps it, and in the model, which a step overwrites."""
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(param, value)
    param.copy_(value)
