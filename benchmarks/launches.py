# SPDX-License-Identifier: Apache-2.0
"""The kernels that an update launches on a GPU, and those of them beside its passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Trainer

from benchmarks.interleave import Recorder

BEGIN, END, UPDATE = (f"benchmarks: {what}" for what in ("a pass begins", "a pass ends", "update"))
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtModuleLaunchKernel")
"""How the names of launches begin in torch's profile."""


class Marks:
    """Writes into torch's profile where passes begin and end, in place of a stopwatch."""

    def start(self) -> None:
        """Begin a pass."""
        mark(BEGIN)

    def stop(self) -> None:
        """End the pass here, also if it was ended before."""
        mark(END)

    def drain(self) -> float:
        """Return no time, for none is taken."""
        return 0.0


def mark(name: str) -> None:
    """Write an event without length into torch's profile."""
    with record_function(name):
        pass


def launches(trainer: Trainer) -> list[tuple[int, int]]:
    """Train, and return for each update the kernels that it launches, and those beside its passes.

    On a CPU nothing is launched.
    """
    recorder = Recorder(trainer, lambda control: mark(UPDATE))
    recorder.passes.watch = Marks()
    activities = [ProfilerActivity.CPU]
    if trainer.args.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as found:
        trainer.train()
    events: Any = found.profiler
    return counted((e.start_ns(), e.name()) for e in events.kineto_results.events())


def counted(events: Iterable[tuple[int, str]]) -> list[tuple[int, int]]:
    """Return for each update its launches, and those outside of passes.

    Args:
        events: (time, name) of launches and marks. A pass ends at its last mark of an end.
    """
    updates: list[tuple[int, int]] = []
    inside = every = since = 0  # since: launches after the last mark, which may be of the pass
    passing = False
    for _, name in sorted(events):
        if name.startswith(LAUNCHES):
            every, since = every + 1, since + 1
        elif name == BEGIN:
            passing, since = True, 0
        elif name == END and passing:
            inside, since = inside + since, 0
        elif name == UPDATE:
            updates.append((every, every - inside))
            inside = every = since = 0
            passing = False
    return updates
