# SPDX-License-Identifier: Apache-2.0
"""Who computes a gradient with whom: one process, or several through accelerate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..vector import Total, add_up
from .precision import loss_scale, rescale_
from .replay import Replay

if TYPE_CHECKING:
    from accelerate import Accelerator


class Engine:
    """What a Landscape needs from the machinery around it, for one process that holds everything.

    `local_ascent` says whether a gradient that only serves to perturb may stay this rank's own.
    """

    local_ascent: bool = False
    total: Total = staticmethod(add_up)

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay or Replay()

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a forward and backward whose gradient is not averaged over ranks (yet, or `own`: ever)."""
        return nullcontext()

    def take(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the gradients: unscaled, `None` where there is none; `.grad` is `None` afterwards."""
        grads = [p.grad for p in params]
        for p in params:
            p.grad = None
        return grads

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
        """Write the update to `.grad`; `update` is consumed."""
        for param, entry in zip(params, update, strict=True):
            param.grad = entry

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place."""


class AcceleratedEngine(Engine):
    """What a Landscape needs when accelerate runs the model: loss scaling, and DDP where there are several ranks.

    Args:
        accelerator: the Trainer's.
        model: the model as accelerate prepared it.
        replay: random numbers and statistics.
        local_ascent: whether a gradient that only serves to perturb stays this rank's own.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, replay: Replay, local_ascent: bool) -> None:
        super().__init__(replay)
        self._accelerator = accelerator
        self._model = model
        self.local_ascent = local_ascent and accelerator.num_processes > 1
        self._views = getattr(model, "gradient_as_bucket_view", False)
        self._every_batch = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a forward and backward whose gradient is not averaged over ranks (yet).

        Args:
            own: the gradient stays this rank's own for good; otherwise `sync_each_batch` is respected.
        """
        if self._every_batch and not own:
            return nullcontext()
        return self._accelerator.no_sync(self._model)

    def take(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the gradients, unscaled; buckets that the next backward will overwrite are copied."""
        grads = super().take(params)
        if self._views:
            grads = [None if g is None else g.clone() for g in grads]
        scale = loss_scale(self._accelerator.scaler)
        if scale is not None:
            rescale_(grads, scale, inverse=True)
        return grads

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> None:
        """Write the update to `.grad`, scaled as clipping and the optimizer step expect it; `update` is consumed."""
        scale = loss_scale(self._accelerator.scaler)
        if scale is not None:
            rescale_(update, scale)
        super().give(params, update)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place."""
        if self._accelerator.num_processes > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self._accelerator.num_processes
