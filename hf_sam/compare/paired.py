# SPDX-License-Identifier: Apache-2.0
"""Differences between two methods seed by seed, and what they say in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
RESAMPLES = 10_000
ENOUGH = 3
"""Seeds below which nothing is said about noise."""


@dataclass(frozen=True)
class Paired:
    """The differences of a method to `none`, a seed each.

    Attributes:
        values: score of the method minus score of `none`.
        low: lower end of the 95 % bootstrap interval of the mean.
        high: its upper end.
        beyond_noise: whether both that interval and Student's leave out zero; the bootstrap alone
            is too narrow for a few seeds.
        less_is_better: whether a negative difference is a gain.
    """

    values: tuple[float, ...]
    low: float
    high: float
    beyond_noise: bool
    less_is_better: bool = False

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of the differences, 0 for one seed."""
        return spread(self.values)

    @property
    def better(self) -> int:
        """Seeds in which the method is better."""
        return sum(self.gain(value) > 0 for value in self.values)

    @property
    def worse(self) -> int:
        """Seeds in which the method is worse."""
        return sum(self.gain(value) < 0 for value in self.values)

    def gain(self, value: float) -> float:
        """Return a difference with the sign that makes a gain positive."""
        return -value if self.less_is_better else value


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample, 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def paired(
    own: Mapping[int, float], plain: Mapping[int, float], less_is_better: bool = False
) -> Paired | None:
    """Compare two methods over the seeds that both have; None if there is no such seed.

    Args:
        own: seed -> score of the method.
        plain: seed -> score of `none`.
        less_is_better: whether a low score is good.
    """
    values = [own[seed] - plain[seed] for seed in sorted(own.keys() & plain.keys())]
    if not values:
        return None
    low, high = bootstrap(values)
    below, above = student(values)
    sure = len(values) >= ENOUGH and (min(low, below) > 0 or max(high, above) < 0)
    return Paired(tuple(values), low, high, sure, less_is_better)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, from 10,000 resamples with a fixed seed."""
    import numpy as np

    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean; without bounds for one value."""
    from scipy.stats import t

    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half


def in_words(difference: Paired, time: float | None, unit: str = "") -> str:
    """Return one honest clause about a method: "better in 5 of 5 seeds, +1.9 ± 0.6, ...".

    Args:
        difference: to `none`.
        time: seconds per update relative to `none`, None where it is not known.
        unit: of the score, such as " points".
    """
    count = len(difference.values)
    price = f", at {time:.2f} times the time" if time is not None else ""
    amount = signed(difference.mean, unit)
    if count == 1:
        return f"one seed says nothing about noise ({amount}{unit}{price})"
    amount = f"{amount} ± {difference.deviation:.{digits(unit)}f}{unit}"
    better = f"better in {difference.better} of {count} seeds"
    if not any(difference.values):
        return f"equal in {count} of {count} seeds{price}"
    if count < ENOUGH:
        return f"{count} seeds are too few to tell ({amount}, {better}{price})"
    if not difference.beyond_noise:
        return f"no difference beyond noise in {count} seeds ({amount}, {better}{price})"
    if difference.gain(difference.mean) > 0:
        return f"{better}, {amount}{price}"
    return f"worse in {difference.worse} of {count} seeds, {amount}{price}"


def signed(value: float, unit: str = "") -> str:
    """Return a difference as text, always with its sign."""
    return f"{value:+.{digits(unit)}f}".replace("-", "\N{MINUS SIGN}")


def digits(unit: str) -> int:
    """Return how many decimals a score has: points are percent, anything else is small."""
    return 2 if "point" in unit else 4
