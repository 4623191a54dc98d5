# SPDX-License-Identifier: Apache-2.0
"""Schedules that decide which updates are perturbed, equally on all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..landscape import Landscape
from .base import Part

SHARE = {"low": 0.0, "high": 1.0}


@dataclass
class Schedule(Part):
    """`schedule(at)` returns whether this update is perturbed.

    Class attributes:
        needs_gradient: whether the decision depends on the gradient at w, so that the method must
            start with that gradient.
    """

    needs_gradient: ClassVar[bool] = False

    def __call__(self, at: Landscape) -> bool:
        """Return whether this update is perturbed."""
        raise NotImplementedError

    def note(self, at: Landscape) -> None:
        """Look at an update that is done, picked or not; only schedules that look back need it."""

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether any of `total` updates can be picked; `warmup` of them are warm-up."""
        return True


@dataclass
class always(Schedule):
    """All updates are perturbed."""

    def __call__(self, at: Landscape) -> bool:
        """Return true for every update."""
        return True


@dataclass
class between(Schedule):
    """Updates from the share `start` of the run up to, but not including, the share `end`."""

    start: float = field(metadata={"help": "fraction of all updates", **SHARE})
    end: float = field(metadata={"help": "fraction of all updates", **SHARE})

    def __call__(self, at: Landscape) -> bool:
        """Return whether the update lies between `start` and `end`."""
        return self.start <= at.progress.fraction < self.end

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether some update lies between `start` and `end`."""
        first = math.ceil(self.start * total)  # the first update that is not before `start`
        return first < total and first / max(total, 1) < self.end


class after(between):
    """Updates from the share `start` of the run to its end."""

    def __init__(self, start: float) -> None:
        super().__init__(start, 1.0)


class before(between):
    """Updates up to, but not including, the share `end` of the run."""

    def __init__(self, end: float) -> None:
        super().__init__(0.0, end)


@dataclass
class every(Schedule):
    """Every k-th update, beginning with the first."""

    k: int = field(metadata={"help": "updates", "low": 1, "whole": True})

    def __call__(self, at: Landscape) -> bool:
        """Return whether the number of this update is a multiple of k."""
        return at.progress.step % int(self.k) == 0


@dataclass
class after_warmup(Schedule):
    """Updates after the learning rate's warm-up."""

    def __call__(self, at: Landscape) -> bool:
        """Return whether the warm-up is over."""
        return at.progress.step >= at.progress.warmup

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether the warm-up ends before the run."""
        return warmup < total


@dataclass
class Coin(Schedule):
    """A coin for every update, which picks it with `probability(x)` at the share x of the run.

    The coin is a function of (seed, update), so that it needs no state and is equal on all ranks.
    """

    def probability(self, x: float) -> float:
        """Return the probability at the share x of the run, 0 to 1."""
        raise NotImplementedError

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether the probability is above zero at some update."""
        return any(self.probability(t / total) > 0 for t in range(total))

    def __call__(self, at: Landscape) -> bool:
        """Return whether the coin picks this update."""
        # A generator of its own: the method's draws from `at.generator` do not move the coin.
        mixed = (
            at.seed * 0x2545F4914F6CDD1D + at.progress.step * 0x9E3779B97F4A7C15 + 0xC0FFEE
        ) % (1 << 63)
        toss = torch.rand((), generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)
        return toss.item() < min(max(self.probability(at.progress.fraction), 0.0), 1.0)


@dataclass
class constant(Coin):
    """Each update with the same probability p."""

    p: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return the constant probability p."""
        return self.p


@dataclass
class piecewise(Coin):
    """Each update with probability p_start before the share `switch` of the run, then p_end."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})
    switch: float = field(metadata={"help": "fraction of all updates", **SHARE})

    def probability(self, x: float) -> float:
        """Return the probability at the share x of the run."""
        return self.p_start if x < self.switch else self.p_end


@dataclass
class linear(Coin):
    """Each update with a probability that goes linearly from p_start to p_end."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return the probability at the share x of the run."""
        return self.p_start + (self.p_end - self.p_start) * x


@dataclass
class trigonometric(Coin):
    """Each update with a probability that goes from p_start to p_end along half a cosine."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return the probability at the share x of the run."""
        return self.p_start + (self.p_end - self.p_start) * (1 - math.cos(math.pi * x)) / 2


@dataclass
class adaptive(Schedule):
    """AE-SAM's gate: updates whose squared gradient norm is large for its running mean and spread.

    Jiang et al., ICLR 2023, arXiv 2304.14647::

        mu      <- delta mu + (1 - delta) |g|^2
        sigma^2 <- delta sigma^2 + (1 - delta) (|g|^2 - mu)^2
        perturb iff |g|^2 >= mu + c sigma,  c from lambda_2 (start of the run) to lambda_1 (end)

    State: mu and sigma^2. The decision needs the gradient's norm on the host, which is one
    synchronisation per update. The averages start at the first finite |g|^2. An update whose |g|^2
    is not finite changes neither average and is not perturbed.
    """

    stateful = True
    needs_gradient = True

    delta: float = field(default=0.9, metadata={"help": "decay of both averages", **SHARE})
    lambda_1: float = field(default=-1.0, metadata={"help": "c at the end of the run"})
    lambda_2: float = field(default=1.0, metadata={"help": "c at the start of the run"})

    def __call__(self, at: Landscape) -> bool:
        """Return whether |g|^2 is large enough to perturb."""
        square = float(at.peek().norm()) ** 2  # peek: the method's first pass is this gradient
        if not math.isfinite(square):
            return False
        mu, variance = self.state.number("mu", square), self.state.number("variance", 0.0)
        # The spread is around the new mean, as in the paper.
        mu = self.delta * mu + (1 - self.delta) * square
        variance = self.delta * variance + (1 - self.delta) * (square - mu) ** 2
        self.state.update(mu=mu, variance=variance)
        x = at.progress.fraction
        return square >= mu + (x * self.lambda_1 + (1 - x) * self.lambda_2) * math.sqrt(variance)


@dataclass
class learning(Schedule):
    """Updates before which the loss has fallen below the share `share` of its first value.

    A model that has learned nothing yet stands on a plateau, where a radius that it would bear
    later can keep it for good. The loss is the clean one, averaged over processes and, with decay
    0.9, over updates; its first value is the mean of the first ten, which are never perturbed. If
    the loss rises again, so that it is above the share, updates are plain again.

    A model that has learned its task already, such as a language model on text like that of its
    pre-training, may never come below the share, and is then never perturbed;
    `sam/share_perturbed_updates` in the log tells.

    State: the averages, and the last loss, which the host reads one update later, when it is known
    anyway. A loss that is not finite changes nothing.
    """

    stateful = True

    share: float = field(default=0.9, metadata={"help": "of the loss's first value", **SHARE})

    def __call__(self, at: Landscape) -> bool:
        """Return whether the mean loss of the updates so far is below the share."""
        self._take_in()
        limit = self.share * self.state.number("first", 0.0)
        return self.state.number("count", 0) >= FIRST and self.state.number("mean", 0.0) < limit

    def note(self, at: Landscape) -> None:
        """Keep the loss of this update."""
        self.state["last"] = at.mean_loss()

    def _take_in(self) -> None:
        """Add the last update's loss to the averages."""
        last = self.state.tensor("last")
        if last is None:
            return
        loss = float(last)
        del self.state["last"]
        count, first = self.state.number("count", 0), self.state.number("first", 0.0)
        if not math.isfinite(loss):
            return
        if count < FIRST:
            first = (count * first + loss) / (count + 1)
            self.state.update(count=count + 1, first=first, mean=first)
        else:
            self.state["mean"] = 0.9 * self.state.number("mean", first) + 0.1 * loss


FIRST = 10
"""The number of updates whose mean loss `learning` takes for the loss's first value."""

SCHEDULES: dict[str, type[Schedule]] = {
    "always": always,
    "after": after,
    "before": before,
    "between": between,
    "every": every,
    "after_warmup": after_warmup,
    "learning": learning,
    "adaptive": adaptive,
}
COINS: dict[str, type[Coin]] = {
    "constant": constant,
    "piecewise": piecewise,
    "linear": linear,
    "trigonometric": trigonometric,
}
