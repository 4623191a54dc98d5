# SPDX-License-Identifier: Apache-2.0
"""The engine for one process, or several that hold all parameters (DDP), run by accelerate.

The engines in `fsdp2.py` and `zero.py` are derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..landscape import Engine, Replay
from .precision import LossScaling, RoundingWatch, scale_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class AcceleratedEngine(Engine):
    """The engine for a model that accelerate runs, with loss scaling and DDP.

    Args:
        accelerator: the Trainer's accelerator.
        model: the model as accelerate prepared it.
        replay: the state that later passes of an update repeat.
        local_ascent: whether each rank keeps a gradient of its own if it only perturbs with it.
        whole_backward: whether every backward must compute all gradients, because reentrant
            checkpointing would leave some out.

    Attributes:
        model: the module that a pass calls.
        outside: trainable parameters of the model that the optimizer does not have. Trainer's
            clipping includes their gradients, so after an update they have those of its last pass.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        replay: Replay,
        local_ascent: bool = False,
        whole_backward: bool = False,
    ) -> None:
        super().__init__(replay)
        self.model = model
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.local_ascent = local_ascent and self.ranks > 1
        self._accelerator = accelerator
        self._views = getattr(model, "gradient_as_bucket_view", False)
        self._every_batch = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        self._scaling = LossScaling(partial(scale_of, accelerator))
        self._watch = RoundingWatch(accelerator.is_main_process, self.average_)
        self._whole_backward = whole_backward
        self.outside: list[nn.Parameter] = []

    def params(self, optimizer: Any) -> list[Tensor]:
        """Return the trainable parameters, in the optimizer's order."""
        return [p for group in optimizer.param_groups for p in group["params"]]

    def mine(self, drawn: list[Any]) -> list[Any]:
        """Return this rank's share of examples that are differentiated one by one."""
        return drawn[self.rank :: self.ranks]

    def start(self) -> None:
        """Begin a new update, also after one that an exception ended."""
        self._scaling.start()

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a pass whose gradient is not averaged over ranks, or not yet.

        Args:
            own: whether the gradient stays this rank's own for good. Otherwise accelerate's option
                `sync_each_batch` is respected.
        """
        if self._every_batch and not own:
            return nullcontext()
        return self._accelerator.no_sync(self.model)

    @contextmanager
    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> Iterator[None]:
        """Surround the passes of a gradient, which `only` may restrict to some parameters."""
        for param in self.outside:
            param.grad = None  # so that they end up with the gradient of the last pass alone
        if only is None or self._whole_backward:
            yield
            return
        subset = [p for p, yes in zip(params, only, strict=True) if yes and p.requires_grad]
        backward = partial(self._accelerator.backward, inputs=subset) if subset else _nothing
        with self._backward_is(backward):
            yield

    @contextmanager
    def _backward_is(self, backward: Callable[..., None]) -> Iterator[None]:
        """Replace `accelerator.backward`, which Trainer's step calls, inside the block."""
        accelerator, before = self._accelerator, self._accelerator.backward
        accelerator.backward = backward
        try:
            yield
        finally:
            accelerator.backward = before

    def take_grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take the unscaled gradients out of `.grad`, which is `None` afterwards."""
        grads = super().take_grads(params)
        if self._views:  # into DDP's buckets, which the next backward overwrites
            grads = [None if g is None else g.clone() for g in grads]
        self._scaling.unscale_(grads)
        return grads

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Write the update to `.grad`, scaled as clipping and the optimizer step expect it.

        Returns:
            As `Engine.give`.
        """
        overflow = self._scaling.overflow()
        if overflow is not None:
            # An ascent gradient that stayed a rank's own may have overflowed on some ranks only.
            if self.ranks > 1:
                torch.distributed.all_reduce(overflow, torch.distributed.ReduceOp.MAX)
            self._scaling.scale_(update, overflow)
        super().give(params, update)
        return None if overflow is None else overflow > 0

    def watch(self, held: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Measure once how much of a perturbation of 16-bit weights rounding leaves."""
        self._watch(held, eps)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over ranks, in place."""
        if self.ranks > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor /= self.ranks

    def agreed(self, shares: list[Any]) -> list[Any]:
        """Return the shares of groups that ranks perturb together, which are means over ranks."""
        if self.ranks == 1 or self.local_ascent:
            return shares
        device = self._accelerator.device
        # Shares in float32 would round a float64 loss; MPS has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        means = torch.stack([torch.as_tensor(s, dtype=wide, device=device) for s in shares])
        self.average_([means])
        return list(means)

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the means of the gradients over ranks, in the same storage.

        An entry is None if it is None on every rank.
        """
        if self.ranks == 1:
            return grads
        device = self._accelerator.device
        # Data may decide which gradients exist. All ranks must join the same all-reduces.
        present = torch.tensor([g is not None for g in grads], dtype=torch.uint8, device=device)
        torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
        whole = [
            None if not somewhere else (self._zeros(p) if g is None else g)
            for p, g, somewhere in zip(params, grads, present.tolist(), strict=True)
        ]
        self.average_([g for g in whole if g is not None])
        return whole

    def _zeros(self, param: Tensor) -> Tensor:
        """Return a gradient of zeros, as `take_grads` would give it."""
        return torch.zeros_like(param, requires_grad=False)


def _nothing(loss: Tensor, **more: Any) -> None:
    """Compute no gradient, because torch refuses a backward for an empty list of parameters."""
