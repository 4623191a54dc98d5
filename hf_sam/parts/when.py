# SPDX-License-Identifier: Apache-2.0
"""Schedules that decide which updates are perturbed, equally on all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..landscape import Landscape, Progress
from .gates import adaptive as adaptive
from .gates import learning as learning
from .schedule import SHARE as SHARE
from .schedule import Planned as Planned
from .schedule import Schedule as Schedule

AT_MAXIMUM = 1 - 1e-9
"""Share of the maximum from which on a learning rate counts as being at it, despite rounding."""

LOW = 0.75
"""Share of its maximum at which a learning rate has been falling for long."""


@dataclass
class always(Planned):
    """All updates are perturbed."""

    def picks(self, progress: Progress) -> bool:
        """Return true for every update."""
        return True


@dataclass
class between(Planned):
    """Updates from the share `start` of the run up to, but not including, the share `end`."""

    start: float = field(metadata={"help": "fraction of all updates", **SHARE})
    end: float = field(metadata={"help": "fraction of all updates", **SHARE})

    def picks(self, progress: Progress) -> bool:
        """Return whether the update lies between `start` and `end`."""
        return self.start <= progress.fraction < self.end


class after(between):
    """Updates from the share `start` of the run to its end."""

    def __init__(self, start: float) -> None:
        super().__init__(start, 1.0)

    def remark(self, run: Iterable[Progress]) -> str | None:
        """Return a line if SAM never starts, or starts when the learning rate is low already."""
        before = 1.0
        for progress in run:
            if self.picks(progress):
                return _inside_a_decay(before) if before <= LOW else None
            before = progress.lr_ratio
        return self._never()


class before(between):
    """Updates up to, but not including, the share `end` of the run."""

    def __init__(self, end: float) -> None:
        super().__init__(0.0, end)


@dataclass
class every(Planned):
    """Every k-th update, beginning with the first."""

    k: int = field(metadata={"help": "updates", "low": 1, "whole": True})

    def picks(self, progress: Progress) -> bool:
        """Return whether the number of this update is a multiple of k."""
        return progress.step % int(self.k) == 0


@dataclass
class after_warmup(Planned):
    """Updates after the learning rate's warm-up."""

    def picks(self, progress: Progress) -> bool:
        """Return whether the warm-up is over."""
        return progress.step >= progress.warmup


@dataclass
class decay(Planned):
    """Updates after the warm-up in which the learning rate is below its maximum.

    Under the learning rate schedule `constant` there are none. Under `linear` and `cosine` they
    are nearly all updates, under `warmup_stable_decay` those of the decay at the end.
    """

    remedy: ClassVar[str] = (
        " The learning rate does not fall: choose a schedule that decays, such as "
        "lr_scheduler_type='warmup_stable_decay', or a start that does not depend on it, such as "
        "after:0.75."
    )

    def picks(self, progress: Progress) -> bool:
        """Return whether the warm-up is over and the learning rate has fallen."""
        # The negation holds for NaN, too: a rate that nobody can foresee may fall.
        fallen = not progress.lr_ratio >= AT_MAXIMUM
        return progress.step >= progress.warmup and fallen


@dataclass
class Coin(Schedule):
    """A coin for every update, which picks it with `probability(x)` at the share x of the run.

    The coin is a function of (seed, update), so that it needs no state and is equal on all ranks.
    """

    def probability(self, x: float) -> float:
        """Return the probability at the share x of the run, 0 to 1."""
        raise NotImplementedError

    def ever(self, run: Iterable[Progress]) -> bool:
        """Return whether the probability is above zero at some update."""
        return any(self.probability(progress.fraction) > 0 for progress in run)

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


def _inside_a_decay(share: float) -> str:
    return (
        f"SAM starts when the learning rate has fallen to {share:.0%} of its maximum. With step "
        "decay, late-phase SAM gains (arXiv 2410.10373); for tails that begin in the middle of a "
        "decay, others have reported no gain, and SAM's whole gain where the rate falls in the "
        "tail alone: sam_when='decay' with lr_scheduler_type='warmup_stable_decay'."
    )


SCHEDULES: dict[str, type[Schedule]] = {
    "always": always,
    "after": after,
    "before": before,
    "between": between,
    "every": every,
    "after_warmup": after_warmup,
    "decay": decay,
    "learning": learning,
    "adaptive": adaptive,
}
COINS: dict[str, type[Coin]] = {
    "constant": constant,
    "piecewise": piecewise,
    "linear": linear,
    "trigonometric": trigonometric,
}
