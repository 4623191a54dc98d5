# SPDX-License-Identifier: Apache-2.0
"""Peak tensor memory of the single updates of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Trainer, TrainerControl

from benchmarks.interleave import Recorder, Samples

END = "benchmarks: end of an update"


def update_peaks(trainer: Trainer) -> tuple[list[int], Samples]:
    """Train, and return the peak memory of every update in bytes, and the passes of every update.

    Counted is tensor memory beyond what was alive before the training: gradients, optimizer and
    method state, activations; on the CPU what torch's profiler sees allocated and freed, on a GPU
    what torch's allocator says.
    """
    gc.collect()
    if trainer.args.device.type == "cuda":
        return _on_cuda(trainer)
    recorder = Recorder(trainer, _mark)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    ends = [e.start_ns() for e in events if e.name() == END]
    return peaks_between(changes, ends), recorder.samples


def _mark(control: TrainerControl) -> None:
    with record_function(END):
        pass


def peaks_between(changes: Iterable[tuple[int, int]], ends: Iterable[int]) -> list[int]:
    """Return the largest sum of changes so far up to each end, since the end before.

    Args:
        changes: (time, bytes) of every allocation, negative for what is freed.
        ends: times.
    """
    ordered = sorted(changes, key=lambda change: change[0])
    peaks, now, position = [], 0, 0
    for end in sorted(ends):
        highest = now
        while position < len(ordered) and ordered[position][0] <= end:
            now += ordered[position][1]
            highest = max(highest, now)
            position += 1
        peaks.append(highest)
    return peaks


def _on_cuda(trainer: Trainer) -> tuple[list[int], Samples]:
    device = trainer.args.device
    before = torch.cuda.memory_allocated(device)
    peaks: list[int] = []

    def read(control: TrainerControl) -> None:
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
        torch.cuda.reset_peak_memory_stats(device)

    recorder = Recorder(trainer, read)
    torch.cuda.reset_peak_memory_stats(device)
    trainer.train()
    return peaks, recorder.samples
