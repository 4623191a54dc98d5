# SPDX-License-Identifier: Apache-2.0
"""A measurement of how the losses of parts make up the loss of a batch, instead of a guess."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .asking import Asking
from .losses import GIVE
from .weighting import WORDS, Weighting, candidates
from .window import Batch, Window

LOOKS = 16
"""The largest number of batches that are measured, if one leaves several possibilities."""

WINDOWS = 100
"""Updates in which a batch that tells more is waited for: each takes a look at the labels."""

DRAWS = 8
"""The number of seeds under which a loss is measured that draws random numbers itself."""

PARTS = 64
"""The largest number of parts of one size that are tried, to see whether they have a loss."""


class Answer(NamedTuple):
    """The result of measuring one batch.

    Attributes:
        whole: the loss of the batch, as a mean over the draws of random numbers.
        off: for each candidate, the difference between its sum over the parts and `whole`, and the
            uncertainty of that difference.
    """

    whole: float
    off: dict[Weighting, tuple[float, float]]


class Measuring:
    """Finds the weighting of a Trainer's loss before the first update that cuts a batch.

    It evaluates the loss of a whole batch and of its parts in training mode, but without dropout,
    whose masks would differ between a part and the whole. If a batch leaves several possibilities,
    as one in which no label is missing does, the next batch that can tell them apart is measured,
    too. The first process decides for all.

    Args:
        trainer: the Trainer.
        passes: the object that runs its loss and keeps the weighting.
        method: the name of the method.
        compares: whether the method compares the losses of single examples.
    """

    def __init__(self, trainer: Any, passes: Any, method: str, compares: bool) -> None:
        self._trainer, self._passes, self._method = trainer, passes, method
        self._compares = compares
        self._looks = 0
        self._windows = 0
        self._possible: list[Weighting] = []
        self._asking = Asking(trainer, passes)
        self._ops = self._asking.ops
        self._tolerance = tolerance_of(trainer)

    def look(self, window: Window) -> None:
        """Measure a batch of the window, if it can tell possible weightings apart."""
        known = self._looks and len(self._possible) == 1
        if known or self._looks >= LOOKS or self._windows >= WINDOWS:
            return
        self._windows += 1
        batch = max(window.batches, key=self._ops.size)
        if not self._looks:
            self._begin(batch, window.num_items)
        telling = [one for one in window.batches if self._tells(one)]
        if not self._asking.agreed(len(telling)) and self._looks:
            return
        self._passes.weighting = self._possible[0]
        if self._asking.agreed(self._ops.size(batch)) > 1:
            self._measure(telling[0] if telling else batch, window.num_items)

    def _begin(self, batch: Batch, num_items: Any) -> None:
        trainer = self._trainer
        self._possible = self._asking.agreed(
            candidates(
                batch.inputs,
                counted=num_items is not None,
                shifted=trainer._loss_shifts_labels,
                config=getattr(trainer.model, "config", None),
            )
        )
        if self._compares:
            self._compares = False
            self._compare(batch, num_items)

    def _tells(self, batch: Batch) -> bool:
        """Return whether the possible weightings give this batch's examples different shares."""
        shares = self._shares(batch)
        return any(not torch.allclose(one, shares[0], atol=1e-9) for one in shares[1:])

    def _shares(self, batch: Batch) -> list[Tensor]:
        """Return the share of each example, (B,), under each possible weighting of a mean."""
        size = self._ops.size(batch)
        counts = [w.counts(batch.inputs, size) for w in self._possible if not w.summed]
        return [one / one.sum().clamp(min=1) for one in counts]

    # -- the weighting --------------------------------------------------------------------------

    def _measure(self, batch: Batch, num_items: Any) -> None:
        """Choose the weighting that reproduces the loss of a batch of two examples or more."""

        def ask(index: slice | None, seed: int | None = None) -> float:
            return self._asking.loss(batch, index, num_items, seed)

        whole = ask(None)
        if not math.isfinite(whole):
            return
        random = not near(ask(None, seed=1), whole, self._tolerance / 10)
        if random and not near(again := ask(None), whole, self._tolerance / 10):
            self._say(
                f"moved by itself from {whole:.4g} to {again:.4g} while it was asked for one and "
                f"the same batch, so how its parts make it up cannot be measured. It is taken for "
                f"a mean over {WORDS[self._possible[0].by]}."
            )
            self._settle([self._possible[0]])
            return
        size = self._asking.agreed(self._ops.size(batch))
        known = self._passes.weighting.smallest
        smallest = known if self._looks else self._smallest(batch, whole, ask)
        if 2 * smallest > size:
            if smallest < size:
                self._say(
                    f"says nothing about fewer than {smallest} of {size} examples, so how parts "
                    f"make it up cannot be measured in such batches. {self._meaning()}"
                )
            self._settle(self._possible, smallest)
            return
        middle = self._asking.agreed(self._split(batch, smallest))
        parts = [slice(0, middle), slice(middle, size)]
        draws = [
            (ask(None, seed), [ask(part, seed) for part in parts])
            for seed in (range(DRAWS) if random else [None])
        ]
        self._choose(self._answer(batch, parts, draws), smallest, random)

    def _answer(
        self, batch: Batch, parts: Sequence[slice], draws: Sequence[tuple[float, list[float]]]
    ) -> Answer:
        off = {}
        for weighting in self._possible:
            counts = weighting.counts(batch.inputs, self._ops.size(batch))
            shares = [float(counts[part].sum() / counts.sum().clamp(min=1)) for part in parts]
            factors = [1.0, 1.0] if weighting.summed else shares
            # A part without labels has the factor 0 and the loss NaN, so it is left out.
            errors = [
                sum(f * loss for f, loss in zip(factors, losses, strict=True) if f) - whole
                for whole, losses in draws
            ]
            spread = statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else 0.0
            off[weighting] = statistics.fmean(errors), spread
        return self._asking.agreed(Answer(statistics.fmean(whole for whole, _ in draws), off))

    def _choose(self, answer: Answer, smallest: int, random: bool) -> None:
        whole, off = answer
        fitting = [
            weighting
            for weighting, (distance, spread) in off.items()
            if abs(distance) <= self._tolerance * abs(whole) + 4 * spread
        ]
        # Among weightings that cannot be told apart, one that is clearly closer comes first.
        fitting.sort(key=lambda one: abs(off[one][0]) // (self._tolerance / 10 * abs(whole) or 1))
        distance, spread = off[(fitting or self._possible)[0]]
        ratio = f"{(whole + distance) / whole:.7g} of it" if whole else f"{distance:.4g} off"
        believed = WORDS[(fitting or self._possible)[0].by]
        if random:
            self._say(
                "draws random numbers beside dropout, of which a part of a batch sees others than "
                f"the whole: the parts, weighted by {believed}, make {ratio}, give or take "
                f"{spread / abs(whole or 1):.1e}. {self._meaning()}"
            )
        elif not fitting or normed(self._trainer.model):
            why = "batch norm couples the examples of a batch"
            if not normed(self._trainer.model):
                why = "no weighting gives the whole, as with class weights, contrastive and "
                why += "auxiliary losses"
            self._say(
                f"is {whole:.4g} for a whole batch, and its parts, weighted by {believed}, make "
                f"{ratio}: {why}. {self._meaning()}"
            )
        only = random or not fitting
        self._settle((fitting or self._possible)[:1] if only else fitting, smallest)

    def _meaning(self) -> str:
        return (
            f"{self._method} goes on with each part's own loss, so that even at radius 0 its "
            "gradient is not quite the plain Trainer's; sam='sam' takes whole batches."
        )

    def _settle(self, possible: list[Weighting], smallest: int = 1) -> None:
        """Keep the weightings that are possible, and use the first, which is the likeliest."""
        self._looks += 1
        self._possible = [replace(w, smallest=smallest) for w in possible]
        self._passes.weighting = self._possible[0]

    def _split(self, batch: Batch, smallest: int) -> int:
        """Return the size of the first of two parts for which the weightings differ the most."""
        shares = [one.cumsum(0) for one in self._shares(batch)]
        size = self._ops.size(batch)

        def difference(at: int) -> tuple[float, int]:
            here = [float(one[at - 1]) for one in shares]
            labelled = all(0 < share < 1 for share in here)
            apart = round(max(here) - min(here), 6) if labelled else -1.0
            return apart, -abs(2 * at - size)

        return max(range(smallest, size - smallest + 1), key=difference)

    def _smallest(self, batch: Batch, whole: float, ask: Any) -> int:
        """Return the least number of examples that have a loss of their own."""
        size, heavy = self._asking.agreed((
            self._ops.size(batch),
            self._possible[0].counts(batch.inputs, self._ops.size(batch)).tolist(),
        ))
        for count in range(1, size):
            starts = range(0, size - count + 1, count)
            labelled = [s for s in starts if any(heavy[s : s + count])][:PARTS]
            losses = (ask(slice(start, start + count)) for start in labelled)
            if not labelled or self._say_something(losses, whole, size / count):
                return count
        return size

    def _say_something(self, losses: Iterator[float], whole: float, parts: float) -> bool:
        """Return whether the losses of parts are finite and depend on the examples."""
        first = next(losses)
        if not math.isfinite(first):
            return False
        if any(near(one, whole, self._tolerance) for one in (first, parts * first)):
            return True  # equal examples, under a mean or a sum
        return any(math.isfinite(loss) and loss != first for loss in losses)

    # -- the losses of single examples ----------------------------------------------------------

    def _compare(self, batch: Batch, num_items: Any) -> None:
        """Refuse losses of single examples that do not make up the loss of their batch.

        Raises:
            ValueError: they do not; the message gives both values and the remedy.
        """
        with self._asking.no_trace():
            loss, losses = self._passes.ask(batch, num_items, with_losses=True)
        size, whole = self._ops.size(batch), float(loss)
        if len(losses) == size:
            made = [float(w.loss_of(batch.inputs, losses)) for w in self._possible]
            fits = any(near(one, whole, self._tolerance) for one in made)
            if self._asking.agreed(fits or not math.isfinite(whole)):
                return
            reason = f"make a loss of {made[0]:.4g}, and the batch's loss is {whole:.4g}"
        else:
            reason = f"are {len(losses)} for a batch of {size}"
        if self._passes.own_losses:
            self._say(
                f"is not the mean of what per_example_loss_func returns: these losses {reason}. "
                f"{self._method} only compares them with each other."
            )
            return
        raise ValueError(
            f"{self._method} compares the losses of single examples, and those of "
            f"{type(self._trainer.model).__name__}, by its logits and labels, {reason}: {GIVE}"
        )

    def _say(self, message: str) -> None:
        self._trainer._warn(f"The loss of {type(self._trainer.model).__name__} {message}")


def tolerance_of(trainer: Any) -> float:
    """Return how far a loss may be off by rounding, as a share of the loss."""
    # float32 is off by about 1e-7 on a CPU, where batch norm shows from 5e-5 on.
    params = list(trainer.model.parameters())
    narrow = {torch.float16, torch.bfloat16} & {p.dtype for p in params}
    if narrow or trainer.accelerator.mixed_precision != "no":
        return 1e-2
    return 1e-5 if all(p.device.type == "cpu" for p in params) else 1e-4


def normed(model: nn.Module) -> bool:
    """Whether batch norm couples the examples of a batch, even where the loss hardly shows it."""
    return any(isinstance(m, _BatchNorm) and m.training for m in model.modules())


def near(one: float, other: float, tolerance: float) -> bool:
    """Return whether two numbers differ by at most a share of the second one."""
    return abs(one - other) <= tolerance * abs(other)
