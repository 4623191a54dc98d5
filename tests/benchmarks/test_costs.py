# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from benchmarks.costs import Cost, costs


def row(text: str, seconds: list[float], forwards: list[int], **more: Any) -> dict[str, Any]:
    """Returns a row as `benchmarks.methods` writes it, of updates of ten examples."""
    return {
        "text": text,
        "seconds": seconds,
        "cpu_seconds": [s / 2 for s in seconds],
        "forwards": forwards,
        "forward_examples": [10 * n for n in forwards],
        "backward_examples": [5 * n for n in forwards],
        "mask_updates": [],
        "predicted": {"forwards": 2.0, "backwards": 2.0, "time": 2.0},
        **more,
    }


def cost_of(other: dict[str, Any], plain: list[float], drop: int = 1, **more: Any) -> Cost:
    updates = len(plain)
    result = {
        "settings": {"updates": updates, "drop": drop, "batch_size": 10},
        "rows": [row("none", plain, [1] * updates, **more), other],
    }
    return costs(result)[other["text"]]


def test_ratio_is_the_median_of_pairs_without_the_first_updates() -> None:
    found = cost_of(row("sam", [50.0, 2.0, 6.0, 5.0], [2] * 4), [1.0, 1.0, 2.0, 2.0])
    assert found.ratio == 2.5  # of 2, 3, 2.5
    assert (found.low, found.high) == (2.25, 2.75)
    assert found.of_medians == 2.5  # 5 / 2
    assert found.cpu == 2.5
    assert (found.forwards, found.backwards) == (2.0, 1.0)


def test_two_kinds_of_update_count_as_the_schedule_has_them() -> None:
    predicted = {"forwards": 1.25, "backwards": 1.25, "time": 1.25}
    late = row("late_sam", [9.0, 1.0, 1.2, 2.0], [2, 1, 1, 2], predicted=predicted)
    found = cost_of(late, [1.0] * 4)
    assert found.ratio == pytest.approx(0.75 * 1.1 + 0.25 * 2.0)
    assert found.forwards == 1.5  # what the run had


def test_a_kind_that_only_the_first_updates_had_counts_all_the_same() -> None:
    predicted = {"forwards": 1.2, "backwards": 1.2, "time": 1.2}
    found = cost_of(row("looksam", [2.0, 1.0, 1.0], [2, 1, 1], predicted=predicted), [1.0] * 3)
    assert found.ratio == pytest.approx(0.8 + 0.2 * 2.0)


def test_renewals_of_a_mask_are_left_out() -> None:
    ssam = row("ssam_f", [90.0, 2.0, 80.0, 2.0], [130, 2, 130, 2], mask_updates=[0, 2])
    found = cost_of(ssam, [1.0] * 4)
    assert (found.ratio, found.high, found.forwards) == (2.0, 2.0, 2.0)


def test_memory_is_the_later_updates_peak_beyond_that_of_none() -> None:
    plain = {"peaks": [9, 9, 5, 6], "forwards": [1] * 4, "mask_updates": []}
    ssam = {"peaks": [99, 50, 8, 20], "forwards": [2] * 4, "mask_updates": [0, 3]}
    found = cost_of(row("ssam_f", [1.0] * 4, [2] * 4, memory=ssam), [1.0] * 4, memory=plain)
    assert (found.extra, found.extra_renewal) == (2, 14)


def test_what_was_not_measured_is_none() -> None:
    found = cost_of(row("sam", [2.0] * 3, [2] * 3, cpu_seconds=[]), [1.0] * 3)
    assert (found.cpu, found.extra, found.extra_renewal) == (None, None, None)
