# SPDX-License-Identifier: Apache-2.0
"""A rehearsal: a method runs on a toy that records what the method asks of its Landscape."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..landscape import Data, Engine, HeadTap, Landscape, Layer, Pair, Progress, Replay, Update
from ..landscape.layers import is_changed
from ..vector import Selection
from .base import Method

UPDATES = 24
"""Number of updates in a rehearsal, which is enough for a schedule to pick one of them."""

DECAY = 0.3
"""The share of a rehearsed run in which the learning rate falls."""

PEAK = 0.01
"""The largest learning rate of a rehearsed run."""

EXAMPLES = 1024
"""Number of examples in each micro-batch, which is enough for any number of groups."""


@dataclass(frozen=True)
class Asks:
    """What a method asks of its Landscape.

    Attributes:
        examples: whether it takes single examples out of a batch, or cuts batches into groups.
        losses: whether it compares the losses of single examples.
        draws: whether it looks at training examples beyond the update's.
        layers: whether it works on the layers with low-rank adapters.
        changes: whether it changes what these layers compute in a pass.
        head: whether it stands behind the output head.
        starts_at_w: whether its first pass is the whole gradient at w.
        groups: how many groups of an update's examples it perturbs separately.
        passes: the mean number of backward passes per example of an update.
    """

    examples: bool
    losses: bool
    draws: bool
    layers: bool
    changes: bool
    head: bool
    starts_at_w: bool
    groups: int
    passes: float


def asks(method: Method, batches: int = 2) -> Asks:
    """Return what a method, or a method inside it, asks of its Landscape.

    Args:
        method: the method; its own state is neither used nor changed.
        batches: the number of micro-batches in an update.

    Example:
        >>> from hf_sam import ESAM
        >>> asks(ESAM(gamma=0.5)).losses, asks(ESAM(gamma=1.0)).losses
        (True, False)
    """
    # Inner methods are rehearsed by themselves, too: a schedule may not pick them in the toy run.
    records = [_rehearse(part, batches) for part in method.walk() if isinstance(part, Method)]
    return Asks(
        examples=any(notes.examples for notes in records),
        losses=any(notes.losses for notes in records),
        draws=any(notes.draws for notes in records),
        layers=any(notes.layers for notes in records),
        changes=any(notes.changes for notes in records),
        head=any(notes.head for notes in records),
        starts_at_w=records[0].starts_at_w,
        groups=max(notes.groups for notes in records),
        passes=records[0].seen / (records[0].updates * batches * EXAMPLES),
    )


def course(step: int, total: int, per_epoch: int | None = None) -> Progress:
    """Return the position of an update in a rehearsed run.

    Its learning rate stays at its maximum, and falls linearly to zero in the last 30 %.
    """
    lr_ratio = min((1 - step / total) / DECAY, 1.0)
    return Progress(
        step, total, per_epoch=per_epoch, lr_ratio=lr_ratio, learning_rate=PEAK * lr_ratio
    )


class Notes:
    """The requests that a method has made so far."""

    def __init__(self) -> None:
        self.examples = self.losses = self.draws = False
        self.layers = self.changes = self.head = False
        self.starts_at_w = True
        self.groups = 1
        self.seen = self.updates = 0


def _rehearse(method: Method, batches: int) -> Notes:
    fresh = copy.deepcopy(method)  # the rehearsal changes state, and must not change the method's
    for part in fresh.walk():
        part.load_state_dict({})
    notes = Notes()
    # A method that wants more than a toy can give refuses it; in training it raises that itself.
    with contextlib.suppress(ValueError, NotImplementedError):
        for step in range(UPDATES):
            _one_update(fresh, notes, step, batches)
            if notes.groups >= EXAMPLES:  # a group of each example: one such update shows it all
                break
    return notes


def _one_update(method: Method, notes: Notes, step: int, batches: int) -> None:
    params = [torch.ones(2, 4), torch.ones(2), torch.ones(3, 2)]
    # It is not initialised, because that would draw from torch's own generator.
    base = skip_init(nn.Linear, 4, 3, bias=False).requires_grad_(False)
    nn.init.ones_(base.weight)
    layer = Layer("layer", base, [Pair(a=0, b=2)])
    stage = Stage(notes, params, batches, layer)

    def backward(
        batch: Any,
        share: Any = 1.0,
        *,
        with_losses: bool = False,
        head: HeadTap | None = None,
        **_: Any,
    ) -> Any:
        notes.losses |= with_losses
        if head is not None:
            notes.head, notes.starts_at_w = True, False
            head(torch.ones(3, 2), torch.ones(3, 4), lambda logits: logits.square().sum())
        stage.seen += len(batch)
        for i, p in enumerate(params):
            # It depends on the weights and on the examples, so that no direction vanishes.
            gradient = (p + i + batch[0] / EXAMPLES) * share
            p.grad = gradient if p.grad is None else p.grad + gradient
        # It falls, as a training's does, for schedules that wait for that.
        loss = (1 - step / UPDATES) * torch.ones(()) * share
        return (loss, torch.ones(len(batch))) if with_losses else loss

    def per_example(batch: Sequence[int]) -> Tensor:
        notes.losses = True
        return torch.arange(float(len(batch)))

    def layers() -> list[Layer]:
        notes.layers = True
        return [layer]

    def sample(n: int, generator: torch.Generator) -> list[Any]:
        notes.draws = True
        return [range(1)] * min(n, 2)

    update = Update(
        params=params,
        backward=backward,
        perturbable=Selection([True] * len(params)),
        progress=course(step, UPDATES, per_epoch=4),
        names=["layer.weight", "layer.bias", "other.weight"],
        per_example=per_example,
        sample=sample,
        layers=layers,
        engine=stage,
    )
    method(Landscape.of(update, Data.by_examples([range(EXAMPLES)] * batches, Ranges(notes))))
    notes.groups = max(notes.groups, stage.groups)
    notes.seen += stage.seen
    notes.updates += 1


class Ranges:
    """Batch operations for ranges of numbers, which record that examples were selected."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def size(self, batch: Sequence[int]) -> int:
        """Return the number of examples."""
        return len(batch)

    def denominator(self, batch: Sequence[int]) -> int:
        """Return the number of examples."""
        return len(batch)

    def scale(self, part: Sequence[int], whole: Sequence[int]) -> float:
        """Return 1, because the loss is a mean."""
        return 1.0

    def loss_of(self, batch: Sequence[int], losses: Tensor) -> Tensor:
        """Return the mean of the examples' losses."""
        return losses.mean()

    def take(self, batch: Sequence[int], index: Tensor | slice | None) -> Sequence[int]:
        """Return the chosen examples, and record that there was a choice."""
        if index is None:
            return batch
        self._notes.examples = True
        return batch[index] if isinstance(index, slice) else [batch[i] for i in index.tolist()]


class ToyReplay(Replay):
    """A replay of nothing, which tells a stage which passes do not belong to the update."""

    def __init__(self, stage: Stage) -> None:
        super().__init__([])
        self._stage = stage

    @contextlib.contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround passes that do not belong to the update."""
        self._stage.other_data = True
        yield
        self._stage.other_data = False


class Stage(Engine):
    """An engine that records the first pass and the number of groups.

    Attributes:
        seen: the number of examples in the backward passes of this update.
        other_data: whether the pass looks at other examples than the update's.
        groups: the number of groups of examples in this update.
    """

    def __init__(self, notes: Notes, params: Sequence[Tensor], batches: int, layer: Layer) -> None:
        super().__init__(ToyReplay(self))
        self._notes, self._params, self._all = notes, params, batches * EXAMPLES
        self._layer = layer
        self._first = True
        self.seen, self.groups = 0, 1
        self.other_data = False

    @contextlib.contextmanager
    def passes(
        self, params: Sequence[Tensor], only: Sequence[bool] | None = None
    ) -> Iterator[None]:
        """Surround a pass, and record whether the first one looks at all examples at w."""
        if self.other_data:
            yield
            return
        first, self._first = self._first, False
        before, changed = self.seen, is_changed(self._layer)
        self._notes.changes |= changed
        # The toy's weights are all 1.
        at_w = all(bool((p == 1).all()) for p in self._params) and not changed
        yield
        if first:
            self._notes.starts_at_w &= at_w and only is None and self.seen - before == self._all

    def agreed(self, shares: list[Any]) -> list[Any]:
        """Count the groups; a cut replaces one group by `len(shares)` groups."""
        self.groups += len(shares) - 1
        return shares
