# SPDX-License-Identifier: Apache-2.0
"""What is counted against sums by hand, and against tensors of known size."""

import torch

from hf_sam.estimate.allocations import MARK, MEMORY, Allocations, peaks_by_mark


def test_peaks_between_marks() -> None:
    changes = [(1, 10), (2, 5), (3, -8), (5, 4), (6, -9), (9, 7)]
    # held:     10      15      7       11      2       9
    events = [(time, MEMORY, size) for time, size in changes]
    events += [(4, f"{MARK}a", 0), (7, f"{MARK}b", 0), (8, "aten::add", 0), (10, f"{MARK}a", 0)]
    assert peaks_by_mark(events) == {"": 15, "a": 11, "b": 9}
    assert peaks_by_mark(reversed(events)) == {"": 15, "a": 11, "b": 9}


def test_a_time_without_changes_holds_what_there_was() -> None:
    events = [(1, MEMORY, 10), (2, MEMORY, -4), (3, f"{MARK}a", 0)]
    assert peaks_by_mark(events) == {"": 10, "a": 6}


def test_tensors_of_known_size() -> None:
    with Allocations() as found:
        kept = torch.zeros(100)
        found.mark("a")
        torch.zeros(50).add_(1)
        found.mark("b")
        del kept
        found.mark("a")
        more = torch.zeros(200)
    assert found.peaks == {"": 400, "a": 4 * more.numel(), "b": 400}
