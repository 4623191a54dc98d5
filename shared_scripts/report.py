# SPDX-License-Identifier: Apache-2.0
"""What a demo shows of its results: a table, a reading of it, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hf_sam.sharpness import Panel, draw

ALONG_GRADIENT = [t / 20 for t in range(-10, 11)]
ALONG_RANDOM = [t / 10 for t in range(-10, 11)]

SUMMARISED = (
    "validation_accuracy",
    "best_epoch_accuracy",
    "training_loss",
    "sharpness",
    "wrong_labels_learned",
    "seconds_per_update",
)


def summary(runs: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of every number over the runs of a method."""
    found = {}
    for name in SUMMARISED:
        values = [getattr(run, name) for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": statistics.fmean(values), "sd": spread}
    return found


def table(results: dict[str, Any]) -> Table:
    """Return the table that the demo ends with."""
    seeds = len(results["seeds"])
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=spread, caption_justify="left")
    shown.add_column("method")
    for heading in (
        "validation\naccuracy %",
        "training\nloss",
        "sharpness",
        "wrong labels\nlearned %",
        "seconds\nper update",
        "peak\nmemory MB",
    ):
        shown.add_column(heading, justify="right")
    for method, numbers in results["summary"].items():
        shown.add_row(
            method,
            _cell(numbers["validation_accuracy"], 1, seeds),
            _cell(numbers["training_loss"], 2, seeds),
            _cell(numbers["sharpness"], 3, seeds),
            _cell(numbers["wrong_labels_learned"], 0, seeds),
            f"{numbers['seconds_per_update']['mean']:.4f}",
            f"{results['peak_memory_mb'][method]:.1f}",
        )
    return shown


def reading(results: dict[str, Any]) -> str:
    """Return what the table does not say: seed by seed, and at the best epoch of each run."""
    accuracy = {(run["method"], run["seed"]): run["validation_accuracy"] for run in results["runs"]}
    first, *others = results["methods"]
    sentences = []
    for method in others:
        better = sum(accuracy[method, s] > accuracy[first, s] for s in results["seeds"])
        sentences.append(f"{method} beats {first} with {better} of {len(results['seeds'])} seeds.")
    best = ", ".join(
        f"{method} {numbers['best_epoch_accuracy']['mean']:.1f} %"
        for method, numbers in results["summary"].items()
    )
    sentences.append(f"Best epoch of each run, which takes right labels to find: {best}.")
    return " ".join(sentences)


def _cell(value: dict[str, float], digits: int, seeds: int) -> str:
    mean = f"{value['mean']:.{digits}f}"
    return f"{mean} ± {value['sd']:.{digits}f}" if seeds > 1 else mean


def picture(results: dict[str, Any], path: Path, title: str) -> Path:
    """Draw training curves and slices of all methods."""

    def lines(values: Callable[[dict[str, Any]], list[float]]) -> dict[str, list[list[float]]]:
        return {
            method: [values(run) for run in results["runs"] if run["method"] == method]
            for method in results["methods"]
        }

    setting = results["setting"]
    epochs = list(range(1, setting["epochs"] + 1))
    noise = f"{100 * setting['label_noise']:.0f} % of them wrong"
    panels = [
        Panel(
            f"Training loss (labels as given, {noise})",
            "epoch",
            "loss",
            epochs,
            lines(lambda run: run["losses"]),
        ),
        Panel(
            "Validation accuracy (right labels)",
            "epoch",
            "accuracy in %",
            epochs,
            lines(lambda run: run["accuracies"]),
        ),
        Panel(
            "Loss around the solution, along its gradient",
            "distance t along g/|g|",
            "training loss at w + t g/|g|",
            ALONG_GRADIENT,
            lines(lambda run: run["slices"]["gradient"]["losses"]),
            mark=0.0,
        ),
        Panel(
            "Loss around the solution, along a random direction",
            "distance t, relative to the weights (filter-normalised)",
            "training loss at w + t d",
            ALONG_RANDOM,
            lines(lambda run: run["slices"]["random"]["losses"]),
            mark=0.0,
        ),
    ]
    seeds = len(results["seeds"])
    over = f"mean and range over {seeds} seeds" if seeds > 1 else "one seed"
    return draw(panels, path, f"{title}: {over}")
