# SPDX-License-Identifier: Apache-2.0
"""Run a script unchanged, and record what its Trainer does.

Every Trainer that the script builds gets a `Recorder`, through transformers' list of default
callbacks. When the script has ended well, `FOLDER/run.json` says what came of it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import runpy
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, trainer

from ..callbacks.averaging import AveragingCallback
from ..callbacks.sharpness import FixedSharpness
from .jobs import AVERAGE

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "hf-sam")
PROGRESS_EVERY = 0.5
"""Seconds from one note of the progress to the next."""


class Recorder(TrainerCallback):
    """Records one Trainer: its log, the seconds of its updates, how far it is.

    Attributes:
        folder: gets the file `progress`.
        examples: to measure the sharpness on, 0 for none.
        seconds: of each update, data loading included, evaluation and saving left out.
        cpu_seconds: of this process in the same spans.
        state: the Trainer's own, whose log history grows until the script ends.
        arguments: the Trainer's.
    """

    found: list[Recorder] = []  # of this process, in the order in which they began to train
    folder: Path = Path()
    examples: int = 0

    def __init__(self) -> None:
        """Record nothing yet."""
        self.sharpness = FixedSharpness(self.examples)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.state: Any = None
        self.arguments: Any = None
        self._since: tuple[float, float] | None = None
        self._noted = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of a Trainer that trains.

        Raises:
            ValueError: the best epoch would be chosen on the examples that are reported.
        """
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would choose the epoch on the examples that the "
                "comparison reports: leave it out; the score is that of the last model"
            )
        self.arguments = args
        self.state = state
        Recorder.found.append(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock after anything that is not part of an update."""
        if self._since is None:
            self._since = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time, and let it run on into the next update."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._since is not None:
            self.seconds.append(now - self._since[0])
            self.cpu_seconds.append(cpu - self._since[1])
        self._since = now, cpu
        if state.is_world_process_zero and now - self._noted > PROGRESS_EVERY:
            self._noted = now
            replace(self.folder / "progress", f"{state.global_step} {state.max_steps}")

    def _pause(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = None

    on_epoch_begin = on_epoch_end = on_save = on_train_end = _pause

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the sharpness to what the evaluation logged."""
        self._since = None
        if kwargs.get("train_dataloader") is None or not state.log_history:
            return
        found = self.sharpness(args, kwargs["model"], kwargs["train_dataloader"])
        if found is not None:
            state.log_history[-1]["compare/sharpness"] = found

    def record(self) -> dict[str, Any]:
        """Return what is known of the run.

        Raises:
            ValueError: the last model was not evaluated.
        """
        log = list(self.state.log_history)
        steps = self.state.global_step
        peaks = [entry["memory/peak_mb"] for entry in log if "memory/peak_mb" in entry]
        return {
            "seed": self.arguments.seed,
            "metrics": last_metrics(log, steps),
            "log": log,
            "updates": steps,
            "seconds_per_update": usual(self.seconds),
            "cpu_seconds_per_update": usual(self.cpu_seconds)
            if self.arguments.device.type == "cpu"
            else None,
            "memory_mb": max(peaks, default=None),
            "metric_for_best_model": self.arguments.metric_for_best_model,
            "no_sharpness": self.sharpness.why_not,
            "versions": versions(),
            "hardware": hardware(),
        }


def usual(seconds: Sequence[float]) -> float:
    """Return the mean without the first update, which also loads libraries and picks kernels."""
    return statistics.fmean(seconds[1:] or seconds)


def last_metrics(log: Sequence[dict[str, Any]], steps: int) -> dict[str, float]:
    """Return the metrics of the evaluations after the last update, the first one of a name.

    Args:
        log: a Trainer's log history.
        steps: its updates.

    Raises:
        ValueError: there was no evaluation after the last update.
    """
    found: dict[str, float] = {}
    for entry in log:
        if entry.get("step") == steps:
            scores = {k: v for k, v in entry.items() if is_metric(k, v)}
            found = scores | found  # a later evaluation is of another set, or of the same model
    if not found:
        raise ValueError(
            f"no evaluation after the last update ({steps}): let the script evaluate at its end, "
            "for example with --do_eval or --eval_strategy epoch"
        )
    return found


def is_metric(key: str, value: Any) -> bool:
    """Return whether an entry of a log is a metric of an evaluation, rather than its speed."""
    timing = ("_runtime", "_per_second", "_samples", "_compilation_time")
    return key.startswith("eval_") and not key.endswith(timing) and isinstance(value, (int, float))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, its cores, torch's threads and the accelerators."""
    import torch

    found: dict[str, Any] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    # Without the check it is the one that torch was built for, also where there is none.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        named = getattr(torch.get_device_module(accelerator), "get_device_name", None)
        name = named() if named is not None else accelerator.type
        found["accelerator"] = f"{torch.accelerator.device_count()} x {name}"
    return found


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.M)
    return names[0].strip() if names else platform.processor() or platform.machine()


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, never a part of it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def main(argv: Sequence[str]) -> None:
    """Run the script, and write what came of it.

    Raises:
        SystemExit: the script trained no Trainer, or did not evaluate its last model.
    """
    folder, examples, script, *words = argv
    Recorder.folder, Recorder.examples = Path(folder), int(examples)
    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    callbacks.append(Recorder)
    if words[-2:-1] == [AVERAGE]:
        callbacks.append(AveragingCallback(float(words[-1])))
        words = words[:-2]
    try:
        run(script, words)
    except SystemExit as end:  # `sys.exit(main())` is a good end, too
        if end.code not in (None, 0):
            raise
    _write(Path(folder), shlex.join(["python", script, *words]))


def run(script: str, words: Sequence[str]) -> None:
    """Run `python SCRIPT WORDS` or `python -m MODULE WORDS` in this process."""
    if script == "-m":
        sys.argv = list(words)
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *words]
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")


def _write(folder: Path, command: str) -> None:
    if not Recorder.found:
        sys.exit(
            "hf-sam compare: the script trained nothing with a Trainer: does it need --do_train?"
        )
    recorder = Recorder.found[-1]
    if not recorder.state.is_world_process_zero:
        return
    try:
        record = recorder.record() | {"command": command}
    except ValueError as error:
        sys.exit(f"hf-sam compare: {error}")
    replace(folder / "run.json", json.dumps(record, indent=1, default=str) + "\n")
