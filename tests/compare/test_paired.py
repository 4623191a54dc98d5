# SPDX-License-Identifier: Apache-2.0
"""Paired differences against scipy and by hand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hf_sam.compare.paired import Paired, bootstrap, in_words, paired, student

CLEAR = {1: 1.9, 2: 2.5, 3: 1.4, 4: 2.2, 5: 1.6}
PLAIN = dict.fromkeys(CLEAR, 0.0)


def test_differences_are_taken_seed_by_seed() -> None:
    found = paired({3: 82.0, 1: 80.0, 9: 1.0}, {1: 79.0, 3: 84.0, 7: 2.0})
    assert found is not None
    assert found.values == (1.0, -2.0)
    assert (found.mean, found.better, found.worse) == (-0.5, 1, 1)
    assert found.deviation == pytest.approx(2.1213203436)  # |1 - -2| / sqrt(2)


def test_no_seed_in_common() -> None:
    assert paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize("values", [[0.3, -1.0, 2.0], [1.9, 2.5, 1.4, 2.2, 1.6], list(range(12))])
def test_the_bootstrap_is_scipys(values: list[float]) -> None:
    found = bootstrap(values)
    spread = float(np.std(values))
    wanted = stats.bootstrap(
        (np.array(values, float),), np.mean, method="percentile", n_resamples=20_000
    ).confidence_interval
    assert found == pytest.approx(tuple(wanted), abs=0.06 * spread)
    assert found == bootstrap(values)  # the seed is fixed


def test_students_interval_is_scipys_test() -> None:
    values = list(CLEAR.values())
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student(values) == pytest.approx((wanted.low, wanted.high))
    assert student([1.0]) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("values", "sure"),
    [
        ([1.9, 2.5, 1.4, 2.2, 1.6], True),
        ([-1.9, -2.5, -1.4, -2.2, -1.6], True),
        ([2.0, 0.1, 3.0], False),  # the bootstrap leaves out zero, Student's interval does not
        ([2.0, 2.1], False),  # two seeds never
        ([0.0, 0.0, 0.0], False),
        ([1.0, -1.0, 0.5, -0.5], False),
    ],
)
def test_beyond_noise(values: list[float], sure: bool) -> None:
    found = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert found is not None
    assert found.beyond_noise is sure
    if values == [2.0, 0.1, 3.0]:
        assert found.low > 0 > student(values)[0]


@pytest.mark.parametrize(
    ("own", "time", "words"),
    [
        (CLEAR, 1.08, "better in 5 of 5 seeds, +1.92 ± 0.44 points, at 1.08 times the time"),
        (
            {k: -v for k, v in CLEAR.items()},
            2.0,
            "worse in 5 of 5 seeds, −1.92 ± 0.44 points, at 2.00 times the time",
        ),
        (
            {1: 1.0, 2: -1.0, 3: 0.3},
            None,
            "no difference beyond noise in 3 seeds (+0.10 ± 1.01 points, better in 2 of 3 seeds)",
        ),
        (
            {1: 5.0, 2: 5.1},
            None,
            "2 seeds are too few to tell (+5.05 ± 0.07 points, better in 2 of 2 seeds)",
        ),
        ({1: 5.0}, 1.5, "one seed says nothing about noise (+5.00 points, at 1.50 times the time)"),
        ({1: 0.0, 2: 0.0, 3: 0.0}, None, "equal in 3 of 3 seeds"),
    ],
)
def test_words(own: dict[int, float], time: float | None, words: str) -> None:
    found = paired(own, PLAIN)
    assert found is not None
    assert in_words(found, time, " points") == words


def test_where_less_is_better() -> None:
    found = paired(CLEAR, PLAIN, less_is_better=True)
    assert isinstance(found, Paired)
    assert (found.better, found.worse) == (0, 5)
    assert in_words(found, None) == "worse in 5 of 5 seeds, +1.9200 ± 0.4438"
