# SPDX-License-Identifier: Apache-2.0
"""Peak tensor memory of the single updates of a run."""

from __future__ import annotations

import gc
from typing import Any

import torch
from transformers import Trainer

from benchmarks.interleave import Recorder, Samples
from benchmarks.loops import Loop
from hf_sam.estimate.allocations import Allocations


def update_peaks(trainer: Trainer) -> tuple[list[int], Samples]:
    """Train, and return the peak memory of every update in bytes, and the passes of every update.

    Counted is tensor memory beyond what was alive before the training: gradients, optimizer and
    method state, activations; on the CPU what torch's profiler sees allocated and freed, on a GPU
    what torch's allocator says.
    """
    meter = _meter(trainer.args.device)
    recorder = Recorder(trainer, lambda control: meter.mark())
    with meter:
        trainer.train()
    return meter.peaks, recorder.samples


def loop_peaks(loop: Loop, updates: int) -> tuple[list[int], Samples]:
    """Return the same of a loop, which makes the updates."""
    meter = _meter(loop.device)
    with meter:
        for _ in range(updates):
            loop.step()
            meter.mark()
    return meter.peaks, loop.samples


def _meter(device: torch.device) -> OnCPU | OnCUDA:
    gc.collect()
    return OnCUDA(device) if device.type == "cuda" else OnCPU()


class OnCPU:
    """Context manager that counts what torch allocates between marks.

    Attributes:
        peaks: most bytes beyond those at the beginning, between one mark and the next.
    """

    def __init__(self) -> None:
        self.peaks: list[int] = []
        self._marks = 0
        self._allocations = Allocations()

    def __enter__(self) -> OnCPU:
        self._allocations.__enter__()
        return self

    def mark(self) -> None:
        """End an update."""
        self._marks += 1
        self._allocations.mark(str(self._marks))

    def __exit__(self, *error: Any) -> None:
        self._allocations.__exit__(*error)
        self.peaks = list(self._allocations.peaks.values())[: self._marks]


class OnCUDA:
    """The same of torch's allocator on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.peaks: list[int] = []
        self._device = device

    def __enter__(self) -> OnCUDA:
        self._before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def mark(self) -> None:
        """End an update."""
        self.peaks.append(torch.cuda.max_memory_allocated(self._device) - self._before)
        torch.cuda.reset_peak_memory_stats(self._device)

    def __exit__(self, *error: Any) -> None:
        """Nothing to stop."""
