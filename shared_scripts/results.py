# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: peak memory, seconds per update, result files and predictions."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

import hf_sam
from hf_sam import SAMTrainer
from hf_sam.callbacks import MemoryCallback
from hf_sam.launch import spoken
from shared_scripts.files import read_json, write_json, write_text

MEMORY = "max memory (MB)"
MB = 2**20
SECRETS = ("token", "hub_token")


class PeakMemory:
    """Context manager that measures the peak memory of what runs inside it.

    On CUDA it is what torch allocated at most on the device of this process. Elsewhere it is the
    largest resident set of the process, the interpreter and its libraries included, sampled by
    a thread.

    Args:
        device: where the model computes.
        interval: seconds between two samples of the resident set.
        tracked: a callback that resets torch's statistics in between, and knows the peak of all.
    """

    def __init__(
        self,
        device: torch.device,
        interval: float = 0.02,
        tracked: MemoryCallback | None = None,
    ) -> None:
        """Measure nothing yet."""
        self.device = device
        self.tracked = tracked
        self.interval = interval
        self._bytes = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def megabytes(self) -> float:
        """The peak in MB (2**20 bytes)."""
        return self._bytes / MB

    def __enter__(self) -> PeakMemory:
        """Forget earlier peaks and start to measure."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._sample(psutil.Process())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the peak, whether or not there was an error."""
        if self._thread is None:
            found = torch.cuda.max_memory_allocated(self.device)
            self._bytes = max(found, self.tracked.peak if self.tracked is not None else 0)
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(self.interval):
            self._sample(process)
        self._sample(process)

    def _sample(self, process: psutil.Process) -> None:
        self._bytes = max(self._bytes, process.memory_info().rss)


class UpdateTimer(TrainerCallback):
    """Times each update, its data loading included, evaluation and saving left out."""

    def __init__(self) -> None:
        """Start without a time."""
        self.seconds: list[float] = []
        self.has_begun = False
        self._since: float | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock after anything that is not part of an update."""
        self.has_begun = True
        if self._since is None:
            self._since = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the time, and let it run on into the next update."""
        now = time.perf_counter()
        if self._since is not None:
            self.seconds.append(now - self._since)
        self._since = now

    def _pause(self, *args: Any, **kwargs: Any) -> None:
        self._since = None

    on_train_begin = on_epoch_begin = on_epoch_end = on_evaluate = on_save = _pause

    def metrics(self) -> dict[str, float]:
        """Return the mean and the median in seconds; nothing if there was no update."""
        if not self.seconds:
            return {}
        return {
            "seconds_per_update": statistics.fmean(self.seconds),
            "median_seconds_per_update": statistics.median(self.seconds),
        }


def origin(script: str, arguments: Iterable[Any], argv: Sequence[str]) -> dict[str, Any]:
    """Return command, arguments that are not the default, and versions: what repeats a run.

    Args:
        script: file that is run.
        arguments: the dataclasses that were parsed; secrets are left out.
        argv: the command line's words.
    """
    given = {
        field.name: getattr(group, field.name)
        for group in arguments
        for field in dataclasses.fields(group)
        if field.name not in SECRETS and getattr(group, field.name) != _default(field)
    }
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "command": shlex.join([*spoken(script), *_without_secrets(argv)]),
        "arguments": json.loads(json.dumps(given, default=str)),
        "versions": {name: version(name) for name in packages} | {"hf_sam": hf_sam.__version__},
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _without_secrets(argv: Sequence[str]) -> list[str]:
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        flag, equals, _ = word.partition("=")
        if _is_secret(flag) and equals:
            words.append(f"{flag}=...")
        else:
            words.append("..." if _is_secret(before) else word)
    return words


def _is_secret(flag: str) -> bool:
    return flag.lstrip("-").replace("-", "_") in SECRETS


def save_results(
    trainer: SAMTrainer,
    stage: str,
    metrics: dict[str, Any],
    peak: PeakMemory,
    run: dict[str, Any],
) -> None:
    """Log a stage's metrics and write `<stage>_results.json` and `all_results.json`.

    Args:
        trainer: knows the output folder, and the method in `sam_config`.
        stage: "train", "eval" or "predict".
        metrics: what the stage measured.
        peak: of the stage; with several processes the largest of all counts.
        run: see `origin`; goes into `all_results.json`.
    """
    megabytes = round(_largest(trainer, peak.megabytes), 1)
    trainer.log_metrics(stage, metrics | {MEMORY: megabytes})
    if not trainer.is_world_process_zero():
        return
    method = {"sam": trainer.sam_config}
    folder = Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{stage}_results.json", metrics | method | {MEMORY: megabytes})
    path = folder / "all_results.json"
    results = read_json(path) | metrics | method | run | {f"{stage} {MEMORY}": megabytes}
    write_json(path, results | {MEMORY: _peak_of_all(results)})


def _largest(trainer: SAMTrainer, value: float) -> float:
    mine = torch.tensor([value], device=trainer.args.device)
    return float(trainer.accelerator.gather(mine).max())


def _peak_of_all(results: dict[str, Any]) -> float:
    """Return the largest of the stages' peaks; a damaged file may hold a text for one."""
    peaks = [value for key, value in results.items() if key.endswith(f" {MEMORY}")]
    return max(value for value in peaks if isinstance(value, int | float))


def write_predictions(path: Path, predictions: Iterable[float | str]) -> None:
    """Write one prediction per line with its row number, as GLUE's submission files have it."""
    lines = [
        f"{row}\t{item if isinstance(item, str) else format(item, '.3f')}\n"
        for row, item in enumerate(predictions)
    ]
    write_text(path, "index\tprediction\n" + "".join(lines))
