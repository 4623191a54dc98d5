# SPDX-License-Identifier: Apache-2.0
"""Peak memory of every phase of an update and of evaluation, for any Trainer."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import psutil
import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

MB = 1 << 20
INTERVAL = 0.01
"""Seconds between two samples on a device that does not count peaks itself."""
KINDS = ("", "_reserved")
"""Suffixes of log names: for memory in use, and for memory that torch's allocator holds."""


class Meter(Protocol):
    """Measures peaks, in bytes, of the time since the last `turn`."""

    def turn(self) -> dict[str, int]:
        """Return the peaks of the kinds that it measures, and start a new period."""
        ...

    def close(self) -> None:
        """Stop measuring, and release what the meter needs."""
        ...


class Counter:
    """The peaks that the allocator of an accelerator counts: exact, and without waiting for it.

    Args:
        devices: peaks are added up over them.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self.turn()

    def turn(self) -> dict[str, int]:
        """Return allocated and reserved bytes at their peaks, and reset torch's statistics."""
        peaks = dict.fromkeys(KINDS, 0)
        for device in self._devices:
            stats = torch.accelerator.memory_stats(device)
            for kind, name in zip(KINDS, ("allocated", "reserved"), strict=True):
                peaks[kind] += stats.get(f"{name}_bytes.all.peak", 0)
            torch.accelerator.reset_peak_memory_stats(device)
        return peaks

    def close(self) -> None:
        """Do nothing, because the allocator counts by itself."""


class Sampler:
    """The largest of the values that a thread reads every `INTERVAL` seconds, and at every turn.

    Args:
        read: returns bytes in use now.
    """

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._seen = [0]
        stop = threading.Event()
        work = (read, self._seen, stop)  # not self, so that a forgotten sampler ends, too
        self.thread = threading.Thread(target=_sample, args=work, name="hf_sam memory", daemon=True)
        self.thread.start()
        self._end = weakref.finalize(self, stop.set)

    def turn(self) -> dict[str, int]:
        """Return the largest value since the last turn."""
        now = self._read()
        largest, self._seen[0] = max(self._seen[0], now), now
        return {"": largest}

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self._end()
        self.thread.join()


def _sample(read: Callable[[], int], seen: list[int], stop: threading.Event) -> None:
    while not stop.wait(INTERVAL):
        seen[0] = max(seen[0], read())


def meter_for(model: torch.nn.Module) -> Meter:
    """Return a meter for the devices that a model lies on."""
    devices = sorted({p.device for p in model.parameters()}, key=str)
    kinds = {device.type for device in devices}
    if "mps" in kinds:
        return Sampler(torch.mps.current_allocated_memory)
    if kinds == {"cpu"}:
        return Sampler(partial(_resident, psutil.Process()))
    return Counter([device for device in devices if device.type != "cpu"])


def _resident(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


class MemoryCallback(TrainerCallback):
    """Logs the peak memory of every phase of an update and of evaluation, with any Trainer.

    `Trainer(callbacks=[MemoryCallback()])` measures the plain Trainer as `sam_track_memory=True`
    measures SAMTrainer. The phases::

        pass        forward and backward of an update whose method tells nothing: the plain Trainer
        ascent      forward and backward at w, and what follows from the gradient
        perturb     w -> w + eps
        descent     forward and backward at w + eps
        restore     w + eps -> w, and what follows until the optimizer: the update, clipping
        optimizer   the optimizer's step, and freeing the gradients
        evaluate    evaluation during training

    Training logs get `memory/<phase>_mb`, the peak since the last log in MB (2**20 bytes), and
    `memory/peak_mb`, the largest of an update's phases; so do, for the whole run, the metrics that
    `train()` returns (and scripts write to train_results.json). At the end of training there is a
    line per phase in the log of this module (level INFO). What is measured:

    * CUDA, XPU: what torch's allocator counts, exactly and without waiting for the device; also
      `memory/<phase>_reserved_mb`, what it holds of the device. Sums over the model's devices.
    * CPU: the resident set of the process, with Python and all libraries, so only differences
      between runs say something; MPS: torch's allocations. A thread looks every 0.01 s, so a peak
      that is shorter may be missed. torch counts no allocations on CPU outside of its profiler.

    With several processes each measures itself, and the log is the main process's.

    Torch's own peak statistics are reset at every phase. User code that reads
    `torch.cuda.max_memory_allocated()` (or lets Trainer do so: `skip_memory_metrics=False`) gets
    the peak of the phase alone while this callback is in use: read `peak` instead.

    Reporters that Trainer puts before its callbacks (TensorBoard, W&B) see the values under
    SAMTrainer only; the log history and printed logs have them always.

    Attributes:
        peak: most bytes in use during the last training, in phases and between them; 0 before.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._meter: Meter | None = None
        self._phase = ""  # nothing that is reported
        self._recent: dict[str, dict[str, int]] = {}
        self._run: dict[str, dict[str, int]] = {}

    def announce(self, phase: str) -> None:
        """Record that a method begins a phase of its update; for `Landscape(on_phase=...)`."""
        if self._phase == "pass":  # what came before in this update belongs to it
            self._phase = phase
        else:
            self._begin(phase)

    def add_to(self, logs: dict[str, float]) -> dict[str, float]:
        """Add the peaks to a training log or to a run's final metrics, once; return what is new."""
        new: dict[str, float] = {}
        if "train_runtime" in logs:
            new = _as_logs(self._run)
        elif "loss" in logs and "memory/peak_mb" not in logs:
            new, self._recent = _as_logs(self._recent), {}
        logs.update(new)
        return new

    def _begin(self, phase: str) -> None:
        if self._meter is None:
            return
        peaks = self._meter.turn()
        self.peak = max(self.peak, peaks[""])
        for kept in (self._recent, self._run) if self._phase else ():
            before = kept.setdefault(self._phase, {})
            before.update((kind, max(n, before.get(kind, 0))) for kind, n in peaks.items())
        self._phase = phase

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start measuring the memory of a new run."""
        if self._meter is not None:  # an exception ended the run before
            self._meter.close()
        self._phase, self._recent, self._run, self.peak = "", {}, {}, 0
        self._meter = meter_for(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the phase of the passes, because an update begins."""
        self._begin("pass")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the phase of the optimizer, because the gradient is ready."""
        self._begin("optimizer")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the phase of the optimizer, because the update is done."""
        self._begin("")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attribute the time since the last update to the evaluation."""
        self._phase = self._phase or "evaluate"

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the phase of the evaluation."""
        self._begin("")

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """End the phase of the prediction."""
        self._begin("")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the peaks to the log, to its history, and to the metrics of the run."""
        state.log_history[-1].update(self.add_to(kwargs["logs"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop measuring, and log a line per phase."""
        if self._meter is None:
            return
        self._begin("")
        self._meter.close()
        self._meter = None
        for phase, peaks in self._run.items():
            sizes = [f"{n / MB:.1f} MB{kind.replace('_', ' ')}" for kind, n in peaks.items()]
            logger.info(f"Peak memory, {phase}: {', '.join(sizes)}")


def _as_logs(phases: dict[str, dict[str, int]]) -> dict[str, float]:
    """Return log values in MB: the peak of each phase, and the largest peak of an update."""
    logs: dict[str, float] = {}
    for kind in KINDS:
        sizes = {phase: peaks[kind] / MB for phase, peaks in phases.items() if kind in peaks}
        update = [size for phase, size in sizes.items() if phase != "evaluate"]
        if update:
            sizes["peak"] = max(update)
        logs.update((f"memory/{phase}{kind}_mb", round(s, 2)) for phase, s in sizes.items())
    return logs
