# SPDX-License-Identifier: Apache-2.0
"""Who computes a gradient with whom: one process, or several through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..vector import Total, add_up
from .precision import LossScaling, RoundingWatch
from .replay import Replay

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class How:
    """How the ranks share the gradient of one pass.

    Attributes:
        together: the backward itself averages it over ranks.
        averaged: it is averaged afterwards.
        shared: one way or the other it is the same on all ranks.
    """

    together: bool
    averaged: bool
    shared: bool


class Engine:
    """What a Landscape needs from the machinery around it, for one process that holds everything.

    `local_ascent` says whether a gradient that only serves to perturb may stay this rank's own.
    """

    local_ascent: bool = False
    total: Total = staticmethod(add_up)

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay or Replay()

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a pass whose gradient is not averaged over ranks (yet, or `own`: ever)."""
        return nullcontext()

    def how(self, local_ok: bool, partial: bool, averaged: str) -> How:
        """Return how the ranks share the gradient of a pass.

        Args:
            local_ok: it only serves to perturb.
            partial: it is computed for some parameters only, which a backward that communicates
                cannot do.
            averaged: of a "pass" of its own; by a group "itself"; or by the group's "caller", which
                is for descent gradients only.
        """
        if local_ok and self.local_ascent:
            return How(together=False, averaged=False, shared=False)
        if averaged == "caller" and not local_ok:
            return How(together=False, averaged=False, shared=True)
        apart = partial or averaged != "pass"
        return How(together=not apart, averaged=apart, shared=True)

    def only(
        self, params: Sequence[Tensor], chosen: Sequence[bool] | None
    ) -> AbstractContextManager[None]:
        """Surround a backward that needs to compute the gradients of the chosen parameters only."""
        return nullcontext()

    def take(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the gradients, unscaled; `.grad` is `None` afterwards."""
        grads = [p.grad for p in params]
        for p in params:
            p.grad = None
        return grads

    def before_perturbing(self, params: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Look at a perturbation that is about to be applied."""

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Write the update to `.grad`; `update` is consumed.

        Returns:
            A `()` bool tensor, equal on all ranks, that says whether a GradScaler will skip this
            update; None without a GradScaler.
        """
        for param, entry in zip(params, update, strict=True):
            param.grad = entry
        return None

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place."""

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the means over ranks, in the same storage; None where every rank has None."""
        return grads


class AcceleratedEngine(Engine):
    """What a Landscape needs when accelerate runs the model: loss scaling, and DDP.

    Args:
        accelerator: the Trainer's.
        model: the model as accelerate prepared it.
        replay: random numbers and statistics.
        local_ascent: whether a gradient that only serves to perturb stays this rank's own.
        whole_backward: a backward for some parameters only would leave gradients out (reentrant
            checkpointing).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        replay: Replay,
        local_ascent: bool,
        whole_backward: bool = False,
    ) -> None:
        super().__init__(replay)
        self._accelerator = accelerator
        self._model = model
        self.local_ascent = local_ascent and accelerator.num_processes > 1
        self._views = getattr(model, "gradient_as_bucket_view", False)
        self._every_batch = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        self._scaling = LossScaling(accelerator)
        self._watch = RoundingWatch(speaks=accelerator.is_main_process)
        self._whole_backward = whole_backward

    def start(self) -> None:
        """Begin a new update, also after one that an exception ended."""
        self._scaling.start()

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a pass whose gradient is not averaged over ranks (yet).

        Args:
            own: it stays this rank's own for good; otherwise `sync_each_batch` is respected.
        """
        if self._every_batch and not own:
            return nullcontext()
        return self._accelerator.no_sync(self._model)

    @contextmanager
    def only(self, params: Sequence[Tensor], chosen: Sequence[bool] | None) -> Iterator[None]:
        """Surround a backward that needs to compute the gradients of the chosen parameters only."""
        if chosen is None or self._whole_backward:
            yield
            return
        subset = [p for p, yes in zip(params, chosen, strict=True) if yes and p.requires_grad]
        accelerator, whole = self._accelerator, self._accelerator.backward
        accelerator.backward = partial(whole, inputs=subset)
        try:
            yield
        finally:
            accelerator.backward = whole

    def take(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the gradients, unscaled; `.grad` is `None` afterwards.

        Views of the buckets that DDP averages are copied: the next backward overwrites them.
        """
        grads = super().take(params)
        if self._views:
            grads = [None if g is None else g.clone() for g in grads]
        self._scaling.unscale_(grads)
        return grads

    def before_perturbing(self, params: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Measure once what rounding leaves of a perturbation of weights stored in 16 bits."""
        self._watch(params, eps)

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Write the update to `.grad`, scaled as clipping and the optimizer step expect it.

        Returns:
            As `Engine.give`. The ranks agree on it by one all-reduce of one number: an ascent
            gradient of their own may have overflowed on some of them only.
        """
        overflow = self._scaling.overflow()
        if overflow is not None:
            if self._accelerator.num_processes > 1:
                torch.distributed.all_reduce(overflow, torch.distributed.ReduceOp.MAX)
            self._scaling.scale_(update, overflow)
        super().give(params, update)
        return None if overflow is None else overflow > 0

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place."""
        if self._accelerator.num_processes > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self._accelerator.num_processes

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the means over ranks, in the same storage; None where every rank has None.

        The ranks first agree on which there are: data decides that, and no rank may wait for
        another's all-reduce.
        """
        if self._accelerator.num_processes == 1:
            return grads
        device = self._accelerator.device
        there = torch.tensor([g is not None for g in grads], dtype=torch.uint8, device=device)
        torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MAX)
        whole = [
            None if not somewhere else (torch.zeros_like(p) if g is None else g)
            for p, g, somewhere in zip(params, grads, there.tolist(), strict=True)
        ]
        self.average_([g for g in whole if g is not None])
        return whole
