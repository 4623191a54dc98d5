# SPDX-License-Identifier: Apache-2.0
"""What a Landscape asks of a method, of batches and their backward, and of an engine.

The mathematics owns this contract, and `hf_sam.engine` implements it for several processes, so that
nothing in `landscape`, `parts` or `methods` knows of a process group.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from ..vector import WHOLE, Placement
from .replay import RandomStates, Replay


class Backward(Protocol):
    """Forward and backward of one batch: adds `share` times the gradient of its loss to `.grad`.

    Returns `share` times the batch's loss, detached, of shape `()`. With `with_losses=True` it
    returns the pair of that loss and the per-example losses, detached, of shape (B,), of the same
    forward; the flag is passed only where it is true.
    """

    def __call__(self, batch: Any, share: Any = 1.0, **with_losses: bool) -> Any:
        """Run forward and backward; see the class."""
        ...


class Ascending(Protocol):
    """What `Landscape.ascent` wants to know of a method.

    Attributes:
        local_ascent: whether its ascent gradient may stay each process's own.
        needs_here: whether it uses the ascent gradient for more than the perturbation.
        ascent_fraction: share of the examples that the ascent gradient looks at.
    """

    @property
    def local_ascent(self) -> bool: ...  # noqa: D102

    @property
    def needs_here(self) -> bool: ...  # noqa: D102

    ascent_fraction: float


class BatchOps(Protocol):
    """How a Landscape counts, weighs and takes the examples of a batch."""

    def size(self, batch: Any) -> int:
        """Return the number of examples, B."""
        ...

    def denominator(self, batch: Any) -> Any:
        """Return what the shares of its parts are computed from: labelled tokens, or examples."""
        ...

    def scale(self, part: Any, whole: Any) -> Any:
        """Return the factor with which a part's loss stands for the whole's; 1 for a mean."""
        ...

    def loss_of(self, batch: Any, losses: Tensor) -> Tensor:
        """Return the batch's loss, `()`, from the losses of its examples, (B,)."""
        ...

    def take(self, batch: Any, index: Tensor | slice | None) -> Any:
        """Return the batch of the examples at some positions, of all of them for None."""
        ...


class Averaging(Enum):
    """Who averages the gradient of a pass over processes, and when."""

    IN_BACKWARD = "the backward pass itself, as DDP does"
    AFTER_PASS = "the Landscape, once the pass is done"
    BY_CALLER = "whoever adds up the gradients of groups of examples, once for all of them"
    NEVER = "nobody: each process keeps its own gradient, and only perturbs with it"


class Engine:
    """The machinery around a Landscape: here one process that holds all parameters.

    Attributes:
        local_ascent: whether a gradient that only serves to perturb stays each process's own.
        placement: how the parameters are spread over processes.
        replay: what makes later passes of an update repeat the first one.
    """

    local_ascent: bool = False
    placement: Placement = WHOLE

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay or Replay()

    @classmethod
    def beside(cls, params: Sequence[Tensor]) -> Engine:
        """Return the engine of a hand-written loop: it replays the generators of the devices."""
        return cls(Replay([RandomStates({p.device for p in params})]))

    # -- gradients ------------------------------------------------------------------------------

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return who averages the gradient of a pass.

        Args:
            wanted: what the Landscape's place in the update asks for.
            to_perturb: the gradient serves for nothing but a perturbation.
            partial: it is computed for some parameters only, which a backward that communicates
                cannot do.
        """
        if to_perturb and self.local_ascent:
            return Averaging.NEVER
        if wanted is Averaging.BY_CALLER:
            return Averaging.AFTER_PASS if to_perturb else wanted
        return Averaging.AFTER_PASS if partial else wanted

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a pass whose gradient is not averaged over processes yet (`own`: never)."""
        return nullcontext()

    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> AbstractContextManager[None]:
        """Surround the passes of one gradient, which may be needed of some parameters only."""
        return nullcontext()

    def take_grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take ownership of the rows of the gradients that this process holds, unscaled.

        Every `.grad` is `None` afterwards.
        """
        grads = [None if p.grad is None else self.local(p.grad) for p in params]
        for p in params:
            p.grad = None
        return grads

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Hand the update, whose storage is consumed, to the optimizer.

        Returns:
            A `()` bool tensor, equal on all processes, that says whether loss scaling will skip
            this update; None without loss scaling.
        """
        for param, entry in zip(params, update, strict=True):
            param.grad = None if entry is None else self.like(param, entry)
        return None

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place."""

    def agreed(self, shares: list[Any]) -> list[Any]:
        """Return the shares of groups that processes perturb together: their means."""
        return shares

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the means over processes, in the same storage.

        An entry is None where every process has None.
        """
        return grads

    # -- weights --------------------------------------------------------------------------------

    def held(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of the weights that this process holds, in their own storage.

        They may be the parameters themselves: whoever computes with them does so under `no_grad`.
        """
        with torch.no_grad():
            return [self.local(p) for p in params]

    def local(self, tensor: Tensor) -> Tensor:
        """Return the rows of a parameter or gradient that this process holds, in its storage."""
        return tensor

    def like(self, param: Tensor, rows: Tensor) -> Tensor:
        """Return the rows of a gradient in the form that the optimizer expects for `param`."""
        return rows

    def rows(self, param: Tensor, whole: Tensor) -> Tensor:
        """Return the rows that this process holds of a tensor of the parameter's full shape."""
        return whole

    def watch(self, held: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Look at a perturbation that is about to be applied."""

    def moving(self) -> AbstractContextManager[None]:
        """Surround everything from before the weights move until after they have returned."""
        return nullcontext()
