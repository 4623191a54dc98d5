# SPDX-License-Identifier: Apache-2.0
"""The demos: methods side by side where a share of the training labels is wrong.

For each seed the data, the wrong labels, the initial weights and the order of the batches are drawn
anew, and all methods get the same. A demo ends with a table, writes a picture and everything that
was measured:

* Validation accuracy: after the last update, on right labels. The best epoch of each run, which
  only right labels can tell, is in the results too.
* Training loss and sharpness: in eval mode on 512 fixed training examples with the labels that were
  trained on; sharpness = loss(w + 0.05 g/|g|) - loss(w).
* Wrong labels learned: share of the wrong labels among those 512 that the model reproduces.
* Seconds per update: the mean, data loading included, evaluation left out.
* Seconds are of one CPU thread, so that the numbers do not depend on how many cores there are.
* Peak memory: the most tensor memory alive at once while a new model is built and makes three
  updates of full batches: weights, gradients, the optimizer's state, activations (torch's profiler
  on the CPU, its allocator on a GPU). Unlike the process's size it does not depend on what ran
  before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is loaded: its profiler reports every start and every tensor older than the start.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PrinterCallback, TrainerCallback

from hf_sam import METHODS, SAMTrainer, SAMTrainingArguments, __version__
from hf_sam.estimate.allocations import Allocations
from hf_sam.sharpness import (
    Slice,
    Surface,
    evaluating,
    gradient_direction,
    loss_slice,
    random_direction,
    sharpness,
)
from shared_scripts.files import write_text
from shared_scripts.report import ALONG_GRADIENT, ALONG_RANDOM, picture, reading, summary, table
from shared_scripts.results import UpdateTimer

FIXED = 512
RHO_MEASURED = 0.05
MB = 2**20
WIDTH = 100
"""Columns of what goes into a file or a pipe."""


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        sam_rho: radius of every method but "none".
        label_noise: share of training labels that are wrong.
        examples: in the training split.
        validation: examples in the validation split.
        epochs: passes over the training split.
        batch: examples in an update.
        learning_rate: at the start.
    """

    sam_rho: float
    label_noise: float
    examples: int
    validation: int
    epochs: int
    batch: int
    learning_rate: float

    @property
    def updates(self) -> int:
        """Updates of one run."""
        return self.epochs * -(-self.examples // self.batch)


class Problem(ABC):
    """The data of one seed, and trainers for them.

    Attributes:
        setting: what is trained.
        seed: of everything that is drawn.
        fixed_wrong: `(512,)` which of the fixed training examples have a wrong label.
    """

    setting: Setting
    seed: int
    fixed_wrong: np.ndarray

    @abstractmethod
    def fixed_batches(self, device: torch.device) -> list[dict[str, torch.Tensor]]:
        """Return the first 512 training examples, with the labels that are trained on."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return what `SAMTrainer` takes beside its arguments, with a new model."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return training arguments beside those that all demos have."""

    def trainer(self, method: str, folder: str, **overrides: Any) -> SAMTrainer:
        """Return a trainer with a new model; without `method="none"` nothing else differs."""
        setting = self.setting
        options: dict[str, Any] = {
            "sam": method,
            "sam_rho": None if method == "none" else setting.sam_rho,
            "num_train_epochs": setting.epochs,
            "per_device_train_batch_size": setting.batch,
            "learning_rate": setting.learning_rate,
            "logging_strategy": "epoch",
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.accelerator.is_available(),
            "seed": self.seed,
        }
        trainer = SAMTrainer(
            args=SAMTrainingArguments(folder, **(options | self.options() | overrides)),
            compute_metrics=lambda p: {"accuracy": _accuracy(p.predictions, p.label_ids)},
            **self.parts(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        module: as `python -m` takes it.
        about: what `--help` says.
        setting: the default.
        problem: builds the data of a seed.
        heading: says in a line what a setting trains.
        title: of the picture.
        folder: for the results.
    """

    module: str
    about: str
    setting: Setting
    problem: Callable[[Any, int], Problem]
    heading: Callable[[Any], str]
    title: str
    folder: str


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers in percent."""
    return 100.0 * float((logits.argmax(-1) == labels).mean())


@dataclass
class Run:
    """What one training measured; accuracies and shares in percent, losses per epoch."""

    method: str
    seed: int
    validation_accuracy: float
    best_epoch_accuracy: float
    training_loss: float
    sharpness: float
    wrong_labels_learned: float
    seconds_per_update: float
    losses: list[float]
    accuracies: list[float]
    slices: dict[str, Slice] = field(repr=False)


class _Advance(TrainerCallback):
    """Tells after each update that it is done."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.advance()


def train(problem: Problem, method: str, advance: Callable[[], None]) -> Run:
    """Train one model and measure it."""
    timer = UpdateTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = problem.trainer(method, folder)
        for callback in (timer, _Advance(advance)):
            trainer.add_callback(callback)
        trainer.train()
    history = trainer.state.log_history
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    batches = problem.fixed_batches(trainer.args.device)
    measured = sharpness(trainer.model, batches, rho=RHO_MEASURED)
    return Run(
        method=method,
        seed=problem.seed,
        validation_accuracy=accuracies[-1],
        best_epoch_accuracy=max(accuracies),
        training_loss=measured.loss,
        sharpness=measured.sharpness,
        wrong_labels_learned=_wrong_learned(trainer.model, batches, problem.fixed_wrong),
        seconds_per_update=timer.metrics()["seconds_per_update"],
        losses=[entry["loss"] for entry in history if "loss" in entry],
        accuracies=accuracies,
        slices=_slices(trainer.model, batches),
    )


def _wrong_learned(model: torch.nn.Module, batches: Sequence[Any], wrong: np.ndarray) -> float:
    with evaluating(model), torch.no_grad():
        said = torch.cat([model(**batch).logits for batch in batches]).cpu().numpy()
    labels = torch.cat([batch["labels"] for batch in batches]).cpu().numpy()
    return _accuracy(said[wrong], labels[wrong]) if wrong.any() else 0.0


def _slices(model: torch.nn.Module, batches: Sequence[Any]) -> dict[str, Slice]:
    surface = Surface(model, batches)
    return {
        "gradient": loss_slice(surface, gradient_direction(surface), ALONG_GRADIENT),
        "random": loss_slice(surface, random_direction(surface), ALONG_RANDOM),
    }


def peak_memory(problem: Problem, method: str) -> float:
    """Return in MB (2**20 bytes) the most tensor memory alive at once during three updates."""
    with tempfile.TemporaryDirectory() as folder:

        def updates() -> None:
            quiet = {"max_steps": 3, "eval_strategy": "no", "logging_strategy": "no"}
            problem.trainer(method, folder, **quiet).train()

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            updates()
            return (torch.cuda.max_memory_allocated() - before) / MB
        with Allocations() as found:
            updates()
        return max(found.peaks.values()) / MB


def run_all(
    make: Callable[[Setting, int], Problem],
    methods: Sequence[str],
    seeds: Sequence[int],
    setting: Setting,
    console: Console,
) -> dict[str, Any]:
    """Train every method with every seed under a progress bar; return what is written as JSON."""
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    runs: list[Run] = []
    memory: dict[str, float] = {}
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        total = setting.updates * len(methods) * len(seeds)
        bar = progress.add_task("training", total=total)
        for seed in seeds:
            problem = make(setting, seed)
            for method in methods:
                progress.update(bar, description=f"seed {seed}, {method}")
                run = train(problem, method, lambda: progress.advance(bar))
                runs.append(run)
                console.print(
                    f"seed {seed}  {method:<12} validation accuracy "
                    f"{run.validation_accuracy:5.1f} %   sharpness {run.sharpness:.3f}"
                )
                if method not in memory:
                    memory[method] = peak_memory(problem, method)
    return {
        "setting": asdict(setting),
        "methods": list(methods),
        "seeds": list(seeds),
        "runs": [asdict(run) for run in runs],
        "peak_memory_mb": memory,
        "summary": {
            method: summary([run for run in runs if run.method == method]) for method in methods
        },
        "wall_seconds": time.perf_counter() - started,
    }


def _origin(module: str, argv: Sequence[str]) -> dict[str, Any]:
    """Command, versions and hardware."""
    packages = ("torch", "transformers", "accelerate", "tokenizers", "scikit-learn")
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "versions": {"python": platform.python_version(), "hf_sam": __version__}
        | {name: version(name) for name in packages},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "accelerator": accelerator,
        },
    }


def _arguments(demo: Demo, argv: Sequence[str]) -> argparse.Namespace:
    default = demo.setting
    parser = argparse.ArgumentParser(
        description=demo.about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=list(METHODS), default=["none", "sam"], metavar="METHOD")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    add("--sam_rho", type=float, default=default.sam_rho, help="radius of every method but none")
    add("--label_noise", type=float, default=default.label_noise, help="share of wrong labels")
    add("--epochs", type=int, default=default.epochs)
    add("--output_dir", type=Path, default=Path(demo.folder))
    given = parser.parse_args(argv)
    if given.epochs < 1:
        parser.error(f"--epochs {given.epochs}: at least one epoch is needed")
    if not 0 <= given.label_noise <= 1:
        parser.error(f"--label_noise {given.label_noise}: must be from 0 to 1")
    if not 0 <= given.sam_rho < math.inf:
        parser.error(f"--sam_rho {given.sam_rho}: must be a finite number from 0")
    if len(set(given.seeds)) < len(given.seeds):
        parser.error(f"--seeds {' '.join(map(str, given.seeds))}: give each one once")
    return given


def run(demo: Demo, argv: Sequence[str] | None = None) -> None:
    """Run a demo as the command line says."""
    argv = sys.argv[1:] if argv is None else argv
    given = _arguments(demo, argv)
    torch.set_num_threads(1)
    setting = dataclasses.replace(
        demo.setting, sam_rho=given.sam_rho, label_noise=given.label_noise, epochs=given.epochs
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(
        f"{demo.heading(setting)}; {setting.updates} updates of {setting.batch} per run; rho "
        f"{setting.sam_rho}.\n"
    )
    results = _origin(demo.module, argv)
    results |= run_all(demo.problem, given.methods, given.seeds, setting, console)
    console.print(table(results))
    console.print(
        f"{reading(results)}\n"
        f"Training loss and sharpness = loss(w + {RHO_MEASURED} g/|g|) - loss(w): in eval mode on "
        f"{FIXED} training examples with the labels as given.\n"
    )
    given.output_dir.mkdir(parents=True, exist_ok=True)
    path = given.output_dir / "results.json"
    write_text(path, json.dumps(results, indent=2) + "\n")
    drawn = picture(results, given.output_dir / "demo.png", demo.title)
    console.print(f"{results['wall_seconds']:.0f} seconds. Picture: {drawn}  Numbers: {path}")
