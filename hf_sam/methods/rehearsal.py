# SPDX-License-Identifier: Apache-2.0
"""What a method asks of its Landscape, found out by running it on a toy that takes notes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..landscape import Data, Engine, Landscape, Progress, Replay, Update
from ..vector import Selection
from .base import Method

UPDATES = 24
"""Updates of a rehearsal: enough for a schedule to pick one."""

EXAMPLES = 1024
"""Examples in each of its micro-batches: enough for any number of groups."""


@dataclass(frozen=True)
class Asks:
    """What a method asks of its Landscape.

    Attributes:
        examples: it takes single examples out of a batch, or cuts batches into groups.
        losses: it compares the losses of single examples.
        draws: it looks at training examples beyond the update's.
        starts_at_w: its first pass is the whole gradient at w.
        groups: how many groups of an update's examples it perturbs, each for itself.
        passes: examples that it goes backward through, per example of an update, on average.
    """

    examples: bool
    losses: bool
    draws: bool
    starts_at_w: bool
    groups: int
    passes: float


def asks(method: Method, batches: int = 2) -> Asks:
    """Return what a method, or a method within it, asks for.

    Args:
        method: the method; its own state is neither used nor changed.
        batches: micro-batches in an update.

    Example:
        >>> from hf_sam import ESAM
        >>> asks(ESAM(gamma=0.5)).losses, asks(ESAM(gamma=1.0)).losses
        (True, False)
    """
    found = [_rehearse(part, batches) for part in method.walk() if isinstance(part, Method)]
    return Asks(
        examples=any(notes.examples for notes in found),
        losses=any(notes.losses for notes in found),
        draws=any(notes.draws for notes in found),
        starts_at_w=found[0].starts_at_w,
        groups=max(notes.groups for notes in found),
        passes=found[0].seen / (UPDATES * batches * EXAMPLES),
    )


class Notes:
    """What was asked for so far."""

    def __init__(self) -> None:
        self.examples = self.losses = self.draws = False
        self.starts_at_w = True
        self.groups = 1
        self.seen = 0


def _rehearse(method: Method, batches: int) -> Notes:
    fresh = copy.deepcopy(method)
    for part in fresh.walk():
        part.load_state_dict({})
    notes = Notes()
    # A method that wants more than a toy can give refuses it; in training it says so itself.
    with contextlib.suppress(ValueError, NotImplementedError):
        for step in range(UPDATES):
            _one_update(fresh, notes, step, batches)
    return notes


def _one_update(method: Method, notes: Notes, step: int, batches: int) -> None:
    params = [torch.ones(2, 4), torch.ones(2)]
    stage = Stage(notes, params, batches)

    def backward(batch: Any, share: Any = 1.0, **flags: bool) -> Any:
        notes.losses |= bool(flags)
        stage.seen += len(batch)
        for i, p in enumerate(params):
            gradient = (p + i + batch[0] / EXAMPLES) * share
            p.grad = gradient if p.grad is None else p.grad + gradient
        loss = torch.ones(()) * share
        return (loss, torch.ones(len(batch))) if flags else loss

    def per_example(batch: Sequence[int]) -> Tensor:
        notes.losses = True
        return torch.arange(float(len(batch)))

    def sample(n: int, generator: torch.Generator) -> list[Any]:
        notes.draws = True
        return [range(1)] * min(n, 2)

    update = Update(
        params=params,
        backward=backward,
        perturbable=Selection([True, True]),
        progress=Progress(step=step, total=UPDATES, per_epoch=4),
        names=["layer.weight", "layer.bias"],
        per_example=per_example,
        sample=sample,
        engine=stage,
    )
    method(Landscape.of(update, Data.by_examples([range(EXAMPLES)] * batches, Ranges(notes))))
    notes.groups = max(notes.groups, stage.groups)
    notes.seen += stage.seen


class Ranges:
    """Batches that are ranges of numbers, of which somebody may take some."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def size(self, batch: Sequence[int]) -> int:
        """Return the number of examples."""
        return len(batch)

    def denominator(self, batch: Sequence[int]) -> int:
        """Return the number of examples."""
        return len(batch)

    def scale(self, part: Sequence[int], whole: Sequence[int]) -> float:
        """Return 1: their loss is a mean."""
        return 1.0

    def loss_of(self, batch: Sequence[int], losses: Tensor) -> Tensor:
        """Return the mean of the examples' losses."""
        return losses.mean()

    def take(self, batch: Sequence[int], index: Tensor | slice | None) -> Sequence[int]:
        """Return the chosen examples, and note that somebody chose."""
        if index is None:
            return batch
        self._notes.examples = True
        return batch[index] if isinstance(index, slice) else [batch[i] for i in index.tolist()]


class Aside(Replay):
    """A replay of nothing, which tells a stage what belongs to no pass of the update."""

    def __init__(self, stage: Stage) -> None:
        super().__init__([])
        self._stage = stage

    @contextlib.contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround what leaves no trace."""
        self._stage.aside = True
        yield
        self._stage.aside = False


class Stage(Engine):
    """An engine that takes note of the first pass, and of the groups.

    Attributes:
        seen: examples that backward passes have looked at in this update.
        aside: whether a pass looks at other examples than the update's.
        groups: groups of examples in this update.
    """

    def __init__(self, notes: Notes, params: Sequence[Tensor], batches: int) -> None:
        super().__init__(Aside(self))
        self._notes, self._params, self._all = notes, params, batches * EXAMPLES
        self._first = True
        self.seen, self.groups = 0, 1
        self.aside = False

    @contextlib.contextmanager
    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> Iterator[None]:
        """Surround a pass; the first one should look at all examples, at w."""
        if self.aside:
            yield
            return
        first, self._first = self._first, False
        before = self.seen
        at_w = all(bool((p == 1).all()) for p in self._params)
        yield
        if first:
            self._notes.starts_at_w &= at_w and only is None and self.seen - before == self._all

    def agreed(self, shares: list[Any]) -> list[Any]:
        """Count the groups: each cut replaces one by several."""
        self.groups += len(shares) - 1
        return shares
