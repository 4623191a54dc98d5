# SPDX-License-Identifier: Apache-2.0
"""What torch allocates on the CPU, to the byte: its profiler sees every piece come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from torch.autograd.profiler import profile, record_function

MARK = "hf_sam mark "
MEMORY = "[memory]"


class Allocations:
    """Context manager that counts the bytes alive on the CPU, beyond those at its beginning.

    Attributes:
        peaks: the most bytes alive from each mark to the next, by the marks' names in their order;
            the name of the time before the first mark is empty. Empty until the end.

    Example:
        >>> import torch
        >>> with Allocations() as found:
        ...     kept = torch.zeros(1000)
        ...     found.mark("more")
        ...     more = torch.zeros(500)
        >>> found.peaks
        {'': 4000, 'more': 6000}
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        # Not `torch.profiler.profile`, which warns (torch 2.11) unless it turns every event into a
        # Python object at once, and that takes ten times as long as a small model's update.
        self._profile = profile(profile_memory=True, use_kineto=True)

    def __enter__(self) -> Allocations:
        gc.collect()  # what is freed later, and was there before, would count as less
        self._profile.__enter__()
        return self

    def mark(self, name: str) -> None:
        """Begin a time of this name, or one more of it."""
        with record_function(MARK + name):
            pass

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        events: Any = self._profile.kineto_results
        self.peaks = peaks_by_mark((e.start_ns(), e.name(), e.nbytes()) for e in events.events())


def peaks_by_mark(events: Iterable[tuple[int, str, int]]) -> dict[str, int]:
    """Return the largest sum of changes so far from each mark to the next.

    Args:
        events: (time, name, bytes) in any order, of every allocation (negative for what is freed)
            and of every mark; others are passed over.
    """
    peaks, now, mark = {"": 0}, 0, ""
    for _, name, size in sorted(events, key=lambda event: event[0]):
        if name == MEMORY:
            now += size
        elif name.startswith(MARK):
            mark = name.removeprefix(MARK)
        else:
            continue
        peaks[mark] = max(peaks.get(mark, now), now)
    return peaks
