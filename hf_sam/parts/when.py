# SPDX-License-Identifier: Apache-2.0
"""When to perturb: schedules, each a yes or no per update, equal on all ranks."""

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
    """`schedule(at)` says whether this update is perturbed.

    Class attribute `needs_gradient`: the answer depends on the gradient at w, so the method must
    start with it.
    """

    needs_gradient: ClassVar[bool] = False

    def __call__(self, at: Landscape) -> bool:
        """Return whether this update is perturbed."""
        raise NotImplementedError

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether any of `total` updates, `warmup` of them warm-up, can be perturbed."""
        return True


@dataclass
class always(Schedule):
    """Every update."""

    def __call__(self, at: Landscape) -> bool:
        """Yes."""
        return True


@dataclass
class between(Schedule):
    """From the share `start` of all updates up to, but not including, the share `end`."""

    start: float = field(metadata={"help": "fraction of all updates", **SHARE})
    end: float = field(metadata={"help": "fraction of all updates", **SHARE})

    def __call__(self, at: Landscape) -> bool:
        """Return whether the update lies between."""
        return self.start <= at.progress.fraction < self.end

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether some update lies between."""
        first = math.ceil(self.start * total)
        return first < total and first / max(total, 1) < self.end


class after(between):
    """From the share `start` of all updates to the end."""

    def __init__(self, start: float) -> None:
        super().__init__(start, 1.0)


class before(between):
    """Up to, but not including, the share `end` of all updates."""

    def __init__(self, end: float) -> None:
        super().__init__(0.0, end)


@dataclass
class every(Schedule):
    """Every k-th update, beginning with the first."""

    k: int = field(metadata={"help": "updates", "low": 1, "whole": True})

    def __call__(self, at: Landscape) -> bool:
        """Return whether it is this one's turn."""
        return at.progress.step % int(self.k) == 0


@dataclass
class after_warmup(Schedule):
    """From the end of the learning rate's warm-up."""

    def __call__(self, at: Landscape) -> bool:
        """Return whether the warm-up is over."""
        return at.progress.step >= at.progress.warmup

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether the warm-up ends before the run."""
        return warmup < total


@dataclass
class Coin(Schedule):
    """A coin per update that falls on yes with `probability(x)` at the share x of the run.

    The coin is a function of (seed, update): nothing to save, nothing to drift between ranks.
    """

    def probability(self, x: float) -> float:
        """Return p at the share x, 0 to 1, of the run."""
        raise NotImplementedError

    def ever(self, total: int, warmup: int = 0) -> bool:
        """Return whether p is above zero at some update."""
        return any(self.probability(t / total) > 0 for t in range(total))

    def __call__(self, at: Landscape) -> bool:
        """Throw the coin."""
        mixed = (
            at.seed * 0x2545F4914F6CDD1D + at.progress.step * 0x9E3779B97F4A7C15 + 0xC0FFEE
        ) % (1 << 63)
        toss = torch.rand((), generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)
        return toss.item() < min(max(self.probability(at.progress.fraction), 0.0), 1.0)


@dataclass
class constant(Coin):
    """Always with probability p."""

    p: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return p."""
        return self.p


@dataclass
class piecewise(Coin):
    """With probability p_start before the share `switch` of the run, p_end from there on."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})
    switch: float = field(metadata={"help": "fraction of all updates", **SHARE})

    def probability(self, x: float) -> float:
        """Return p at x."""
        return self.p_start if x < self.switch else self.p_end


@dataclass
class linear(Coin):
    """With a probability that goes linearly from p_start to p_end."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return p at x."""
        return self.p_start + (self.p_end - self.p_start) * x


@dataclass
class trigonometric(Coin):
    """With a probability that goes from p_start to p_end along half a cosine."""

    p_start: float = field(metadata={"help": "probability", **SHARE})
    p_end: float = field(metadata={"help": "probability", **SHARE})

    def probability(self, x: float) -> float:
        """Return p at x."""
        return self.p_start + (self.p_end - self.p_start) * (1 - math.cos(math.pi * x)) / 2


@dataclass
class adaptive(Schedule):
    """AE-SAM's gate: perturb where the gradient is long for its running mean and spread.

    Jiang et al., ICLR 2023, arXiv 2304.14647::

        mu      <- delta mu + (1 - delta) |g|^2
        sigma^2 <- delta sigma^2 + (1 - delta) (|g|^2 - mu)^2
        perturb iff |g|^2 >= mu + c sigma,  c from lambda_2 (start of the run) to lambda_1 (end)

    State: mu and sigma^2. The decision needs the gradient's norm on the host, one synchronisation
    per update. The averages start at the first finite |g|^2; a non-finite one changes nothing and
    is not perturbed.
    """

    stateful = True
    needs_gradient = True

    delta: float = field(default=0.9, metadata={"help": "decay of both averages", **SHARE})
    lambda_1: float = field(default=-1.0, metadata={"help": "c at the end of the run"})
    lambda_2: float = field(default=1.0, metadata={"help": "c at the start of the run"})

    def __call__(self, at: Landscape) -> bool:
        """Return whether |g|^2 is large enough."""
        square = float(at.peek().norm()) ** 2
        if not math.isfinite(square):
            return False
        mu, variance = self.state.number("mu", square), self.state.number("variance", 0.0)
        mu = self.delta * mu + (1 - self.delta) * square
        variance = self.delta * variance + (1 - self.delta) * (square - mu) ** 2
        self.state.update(mu=mu, variance=variance)
        x = at.progress.fraction
        return square >= mu + (x * self.lambda_1 + (1 - x) * self.lambda_2) * math.sqrt(variance)


SCHEDULES: dict[str, type[Schedule]] = {
    "always": always,
    "after": after,
    "before": before,
    "between": between,
    "every": every,
    "after_warmup": after_warmup,
    "adaptive": adaptive,
}
COINS: dict[str, type[Coin]] = {
    "constant": constant,
    "piecewise": piecewise,
    "linear": linear,
    "trigonometric": trigonometric,
}
