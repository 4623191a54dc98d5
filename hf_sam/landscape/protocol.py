# SPDX-License-Identifier: Apache-2.0
"""The protocols between a Landscape and its method, its batches, their backward, and its engine.

The mathematics owns these protocols and `hf_sam.engine` implements them for several processes, so
that nothing in `landscape`, `parts` or `methods` knows of a process group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from ..sweeps import by_kind
from ..vector import WHOLE, Numbers, Placement
from .replay import RandomStates, Replay


class Backward(Protocol):
    """Forward and backward of one batch: adds `share` times the gradient of its loss to `.grad`.

    It returns `share` times the batch's loss, detached, of shape `()`. With `with_losses=True` it
    returns a pair: that loss, and the per-example losses of the same forward, detached, of shape
    (B,). With `head=tap` it calls `tap(h, z, loss_of)` with the input and the output of the output
    head, and goes on with the logits that this returns; see `HeadTap`. If the tap raises
    `HeadOnly`, no backward is wanted. With `ascending=True` the loss is the ascent's own. Flags are
    passed only where they are asked for.
    """

    def __call__(self, batch: Any, share: Any = 1.0, **flags: Any) -> Any:
        """Run forward and backward, as the class describes."""
        ...


LossOf = Callable[[Tensor], Tensor]
"""A function of logits (..., V) that returns the `()` loss of a batch, times its share."""


class HeadOnly(Exception):
    """Raised by a `HeadTap` that has seen enough: the pass needs no backward."""


class HeadTap(Protocol):
    """Stands behind the output head in a pass, and says with which logits the pass goes on.

    The output head is the linear layer that makes the logits, whatever computes its input.
    """

    def __call__(self, h: Tensor, z: Tensor, loss_of: LossOf) -> Tensor:
        """Return the logits that take the place of the head's output.

        Args:
            h: the head's input, (..., d).
            z: the head's output, (..., V).
            loss_of: the rest of the pass as a function of the logits.

        Raises:
            HeadOnly: the rest of the pass is not needed.
        """
        ...


class Ascending(Protocol):
    """The properties of a method that `Landscape.ascent` reads.

    Attributes:
        local_ascent: whether each process may keep an ascent gradient of its own.
        needs_here: whether the method uses the ascent gradient for more than the perturbation.
        ascent_fraction: the share of the examples on which the ascent gradient is computed.
    """

    @property
    def local_ascent(self) -> bool: ...  # noqa: D102

    @property
    def needs_here(self) -> bool: ...  # noqa: D102

    @property
    def ascent_fraction(self) -> float: ...  # noqa: D102


class BatchOps(Protocol):
    """The operations by which a Landscape counts, weighs and takes the examples of a batch."""

    def size(self, batch: Any) -> int:
        """Return the number of examples, B."""
        ...

    def denominator(self, batch: Any) -> Any:
        """Return the number that shares are computed from: of labelled tokens, or of examples."""
        ...

    def scale(self, part: Any, whole: Any) -> Any:
        """Return the factor that makes a part's loss estimate the whole's; 1 for a mean."""
        ...

    def loss_of(self, batch: Any, losses: Tensor) -> Tensor:
        """Return the batch's loss, `()`, from the losses of its examples, (B,)."""
        ...

    def take(self, batch: Any, index: Tensor | slice | None) -> Any:
        """Return the batch of the examples at the given positions, or the whole batch for None."""
        ...


class Averaging(Enum):
    """Who averages the gradient of a pass over processes, and when."""

    IN_BACKWARD = "the backward pass itself, as DDP does"
    AFTER_PASS = "the Landscape, once the pass is done"
    BY_CALLER = "whoever adds up the gradients of groups of examples, once for all of them"
    NEVER = "nobody: each process keeps its own gradient, and only perturbs with it"


class Engine:
    """The machinery around a Landscape. This base class is one process with all parameters.

    Attributes:
        local_ascent: whether each process keeps a gradient of its own if it only perturbs with it.
        ranks: the number of processes.
        placement: how the parameters are spread over processes.
        replay: the object that makes later passes of an update repeat the first one.
        replicated: whether each process holds all weights, and the optimizer steps these.
    """

    local_ascent: bool = False
    replicated: bool = True
    ranks: int = 1
    placement: Placement = WHOLE

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay or Replay()

    @classmethod
    def beside(cls, params: Sequence[Tensor]) -> Engine:
        """Return the engine of a hand-written loop, which replays the devices' generators."""
        return cls(Replay([RandomStates({p.device for p in params})]))

    # -- gradients ------------------------------------------------------------------------------

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return who averages the gradient of a pass.

        Args:
            wanted: the kind of averaging that the Landscape asks for.
            to_perturb: whether the gradient is used for nothing but a perturbation.
            partial: whether the gradient is computed for some parameters only. A backward that
                communicates cannot do this, so the gradient is averaged after the pass.
        """
        if to_perturb and self.local_ascent:
            return Averaging.NEVER
        # The caller averages the descent gradients; an ascent gradient is needed before that.
        if wanted is Averaging.BY_CALLER:
            return Averaging.AFTER_PASS if to_perturb else wanted
        return Averaging.AFTER_PASS if partial else wanted

    def no_sync(self, own: bool = False) -> AbstractContextManager[None]:
        """Surround a pass whose gradient is not averaged yet, or never if `own` is true."""
        return nullcontext()

    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> AbstractContextManager[None]:
        """Surround the passes of one gradient; `only` selects the parameters that need it."""
        return nullcontext()

    def take_grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Take the unscaled rows of the gradients that this process holds out of `.grad`.

        Every `.grad` is `None` afterwards, so that the next backward cannot write into them.
        """
        whole = [p.grad for p in params]
        for p in params:
            p.grad = None
        return [None if grad is None else self.local(grad) for grad in whole]

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Hand the update to the optimizer. It consumes the update's storage.

        Returns:
            A `()` bool tensor, equal on all processes, which is true if loss scaling will skip this
            update; None without loss scaling.
        """
        for param, entry in zip(params, update, strict=True):
            param.grad = None if entry is None else self.like(param, entry)
        return None

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place."""

    def agreed(self, shares: list[Any]) -> list[Any]:
        """Return the shares of groups that processes perturb together: the means over processes."""
        return shares

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the means of the gradients over processes, in the same storage.

        An entry is None if it is None on every process.
        """
        return grads

    # -- weights --------------------------------------------------------------------------------

    def held(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of the weights that this process holds, in their own storage.

        They may be the parameters themselves, so callers compute with them under `no_grad`.
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

    def scale_(self, params: Sequence[Tensor], factors: Numbers) -> None:
        """Multiply parameters by `()` factors in place, for good; None leaves one alone."""
        held = self.held(params)
        near = [None if f is None else f.to(w.device) for f, w in zip(factors, held, strict=True)]
        with torch.no_grad():
            for places in by_kind(held, near):
                weights, scales = ([vector[i] for i in places] for vector in (held, near))
                torch._foreach_mul_(weights, scales)  # type: ignore[arg-type]

    def move_(self, params: Sequence[Tensor], step: Sequence[Tensor | None], scale: float) -> None:
        """Add `scale` times a step to the parameters in place, for good; None leaves one alone."""
        held = self.held(params)
        with torch.no_grad():
            for places in by_kind(held, step):
                weights, steps = ([vector[i] for i in places] for vector in (held, step))
                torch._foreach_add_(weights, steps, alpha=scale)  # type: ignore[arg-type]

    def watch(self, held: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Inspect a perturbation that is about to be applied; the base class ignores it."""

    def moving(self) -> AbstractContextManager[None]:
        """Surround everything from before the weights move until after they have returned."""
        return nullcontext()
