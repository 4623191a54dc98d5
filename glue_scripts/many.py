# SPDX-License-Identifier: Apache-2.0
"""Several tasks and several seeds in one call: the runs, and the mean and spread of each metric."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue_scripts.arguments import Arguments, DataTrainingArguments
from glue_scripts.metrics import metric_names
from glue_scripts.tasks import KNOWN
from hf_sam import SAMTrainingArguments
from shared_scripts.errors import InputError
from shared_scripts.files import write_json
from shared_scripts.settings import check_metric

SUMMARY = "summary.json"
NOT_AVERAGED = ("epoch", "train_samples", "eval_samples", "predict_samples")


@dataclass(frozen=True)
class Planned:
    """One run of several.

    Attributes:
        task: of GLUE, or "custom" for the user's own data.
        seed: of this run.
        words: the command line that does it alone.
    """

    task: str
    seed: int
    words: list[str]


def plan(words: Sequence[str], parsed: Arguments) -> list[Planned]:
    """Return the runs of a call, each with the words that repeat it; none if it is one run.

    Raises:
        InputError: a task has no data, or they cannot all resume from the same checkpoint.
    """
    _, data_args, args = parsed
    tasks: list[str] = data_args.tasks
    seeds = data_args.seeds or [args.seed]
    if len(tasks) <= 1 and len(seeds) <= 1:
        return []
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {' '.join(map(str, seeds))}: give each seed once")
    resume = str(args.resume_from_checkpoint or "no").lower()
    if resume not in ("no", "false"):
        raise InputError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint}: several tasks or seeds "
            "cannot go on from one checkpoint; resume the one that stopped, alone"
        )
    _check_folders(data_args)
    for task in tasks:
        check_metric(args, metric_names(KNOWN[task]))
    planned = []
    for task in tasks or [None]:
        for seed in seeds:
            folder = Path(str(args.output_dir))
            folder = folder / str(task) if len(tasks) > 1 else folder
            folder = folder / f"seed-{seed}" if len(seeds) > 1 else folder
            own = ["--output_dir", str(folder), "--seeds", str(seed)]
            named = ["--task_name", task] if task is not None else []
            # The last of several equal flags counts.
            planned.append(Planned(task or "custom", seed, [*words, *named, *own]))
    return planned


def _check_folders(args: DataTrainingArguments) -> None:
    """Refuse a missing task now rather than after the first ones are trained."""
    if args.data_dir is None:
        return
    missing = [task for task in args.tasks if not (Path(args.data_dir) / task).is_dir()]
    if missing:
        raise InputError(
            f"--data_dir {args.data_dir}: has no folder for {', '.join(missing)}; name the tasks "
            "that there are, with commas, in --task_name"
        )


def summarise(
    found: Sequence[tuple[Planned, dict[str, Any]]], args: SAMTrainingArguments
) -> dict[str, Any]:
    """Write mean, standard deviation and values of each metric, and return the means.

    Args:
        found: each run with its metrics.
        args: say where to.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, metrics in found:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name not in NOT_AVERAGED:
                values[run.task][name].append(value)
    summary = {
        task: {name: _spread(numbers) for name, numbers in metrics.items()}
        for task, metrics in values.items()
    }
    seeds = list(dict.fromkeys(run.seed for run, _ in found))
    if args.process_index == 0:
        folder = Path(str(args.output_dir))
        write_json(folder / SUMMARY, {"seeds": seeds, "tasks": summary})
        _print(summary, len(seeds))
    several = len(summary) > 1
    return {
        f"{task}_{name}" if several else name: spread["mean"]
        for task, metrics in summary.items()
        for name, spread in metrics.items()
    }


def _spread(numbers: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return {"mean": statistics.fmean(numbers), "sd": deviation, "values": numbers}


def _print(summary: dict[str, dict[str, dict[str, Any]]], seeds: int) -> None:
    for task, metrics in summary.items():
        for name, spread in metrics.items():
            if name.startswith(("eval_", "predict_")) and not name.endswith(("_second", "runtime")):
                mean = f"{spread['mean']:.4f}" + (f" ± {spread['sd']:.4f}" if seeds > 1 else "")
                print(f"{task} {name}: {mean}")
