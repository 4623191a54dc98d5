# SPDX-License-Identifier: Apache-2.0
"""Finished runs, from what `hf-sam compare` recorded or from what the scripts left behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import label

NOT_THE_SETTING = {
    *("seed", "data_seed", "output_dir", "run_name", "logging_dir", "report_to", "debug"),
    *("accelerator_config", "disable_tqdm", "full_determinism", "log_level", "project"),
}
"""Arguments that may differ between runs of one setting, beside those of the method."""
FIRST = (
    *("accuracy", "matthews_correlation", "combined_score", "f1", "spearmanr", "pearson"),
    *("exact_match", "rouge1", "bleu"),
)
"""Metrics by preference, where a task has several."""
LOW = ("loss", "perplexity", "wer", "cer", "error", "mse", "mae")
"""Ends of names of metrics of which less is better."""


@dataclass
class Run:
    """One finished training.

    Attributes:
        method: with its options, as `--methods` takes it.
        seed: of the run.
        setting: argument -> value, of the arguments that are not the method's.
        metrics: of the last model.
        log: the Trainer's log history.
        updates: in the training.
        seconds_per_update: mean.
        cpu_seconds_per_update: mean of the process's CPU seconds, None on an accelerator and where
            they were not taken. They leave out what other programs, or runs side by side, took.
        memory_mb: peak in an update, None where it was not measured.
        command: that repeats it.
        versions: package -> version.
        hardware: of the machine, empty where it is not known.
        wanted: metric that the run itself chose models by, None for none.
    """

    method: str
    seed: int
    setting: dict[str, str]
    metrics: dict[str, float]
    log: list[dict[str, Any]]
    updates: int
    seconds_per_update: float
    memory_mb: float | None
    command: str
    versions: dict[str, str]
    hardware: dict[str, Any] = field(default_factory=dict)
    cpu_seconds_per_update: float | None = None
    wanted: str | None = None


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        ValueError: no such file, or no JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def recorded(folder: Path, method: str, setting: Mapping[str, str]) -> Run:
    """Return the run that `hf_sam.compare.record` wrote into a folder.

    Raises:
        ValueError: it cannot be read.
    """
    found = read_json(folder / "run.json")
    return Run(
        method=method,
        setting=dict(setting),
        wanted=found["metric_for_best_model"],
        cpu_seconds_per_update=found.get("cpu_seconds_per_update"),
        **{name: found[name] for name in _RECORDED},
    )


_RECORDED = (
    *("seed", "metrics", "log", "updates", "seconds_per_update", "memory_mb"),
    *("command", "versions", "hardware"),
)


def left_behind(folder: Path) -> Run:
    """Return the run that run_glue.py or run_image_classification.py finished in a folder.

    Raises:
        ValueError: the run is not finished, evaluated nothing, or kept its best epoch.
    """
    for name in ("all_results.json", "trainer_state.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: has no {name}: no run of a script was finished there")
    found, state = (read_json(folder / n) for n in ("all_results.json", "trainer_state.json"))
    metrics = {k: found[k] for k in found if _is_score(k, found[k])}
    if not metrics or "seconds_per_update" not in found:
        raise ValueError(f"{folder}: the run needs both --do_train and --do_eval to be compared")
    arguments = found["arguments"]
    if arguments.get("load_best_model_at_end"):
        raise ValueError(
            f"{folder}: the run kept its best epoch (load_best_model_at_end), chosen on the "
            "examples that would be reported: train again without it"
        )
    return Run(
        method=method_of(arguments),
        seed=int(arguments.get("seed", 42)),
        setting=setting_of(arguments),
        metrics=metrics,
        log=state["log_history"],
        updates=int(state["max_steps"]),
        seconds_per_update=found["seconds_per_update"],
        memory_mb=found.get("memory/peak_mb"),
        command=found["command"],
        versions=found["versions"],
        wanted=arguments.get("metric_for_best_model"),
    )


def _is_score(key: str, value: Any) -> bool:
    from .record import is_metric

    return " " not in key and is_metric(key, value)


def method_of(arguments: Mapping[str, Any]) -> str:
    """Return the method with its options that a script's arguments name."""
    from ..texts import parse_options

    sam = {k: _word(v) for k, v in arguments.items() if k.startswith("sam_")}
    options = parse_options(arguments.get("sam_options"))
    for name in ("sam_options", "sam_track_memory"):
        sam.pop(name, None)
    return label(str(arguments.get("sam", "sam")), sam, options)


def setting_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that runs must have in common to be compared."""
    return {
        key: _word(value)
        for key, value in arguments.items()
        if key not in NOT_THE_SETTING and key != "sam" and not key.startswith("sam_")
    }


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def differing(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the arguments in which settings differ, in the order of their names."""
    every = list(settings)
    names = sorted({name for setting in every for name in setting})
    return [name for name in names if len({setting.get(name) for setting in every}) > 1]


def by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by what their settings differ in; one setting has the name ''."""
    names = differing(run.setting for run in runs)
    found: dict[str, list[Run]] = {}
    for run in runs:
        given = [
            f"{name}={run.setting[name]}" if name in run.setting else f"default {name}"
            for name in names
        ]
        found.setdefault(", ".join(given), []).append(run)
    return found


def choose_metric(runs: Sequence[Run], wanted: str | None = None) -> str:
    """Return the metric to compare: the one that is asked for, or the one that tasks are known by.

    Raises:
        ValueError: the runs do not all have it, or have no metric in common.
    """
    common = [k for k in runs[0].metrics if all(k in run.metrics for run in runs)]
    listed = ", ".join(common) or "none"
    if wanted is not None:
        name = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if name not in common:
            raise ValueError(f"--metric {wanted}: the runs have in common {listed}")
        return name
    own = [f"eval_{(runs[0].wanted or '').removeprefix('eval_')}"]
    others = [k for k in common if not k.endswith("loss")]
    for name in [*own, *(f"eval_{name}" for name in FIRST), *others, "eval_loss", *common]:
        if name in common:
            return name
    raise ValueError("the runs have no metric in common: give --metric, or compare others")


def less_is_better(metric: str) -> bool:
    """Return whether a metric counts what is wrong."""
    return metric.endswith(LOW)


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of the folders; a folder of `hf-sam compare` stands for all of its runs.

    Raises:
        ValueError: a folder holds no finished run, or a run is there twice.
    """
    runs: list[Run] = []
    for folder in folders:
        runs += compared(folder) if (folder / "plan.json").is_file() else [left_behind(folder)]
    seen: dict[Any, Run] = {}
    for run in runs:
        key = (run.method, run.seed, tuple(sorted(run.setting.items())))
        if key in seen:
            raise ValueError(
                f"two runs of {run.method} have seed {run.seed} and the same arguments: "
                f"{seen[key].command!r} and {run.command!r}; give one of them"
            )
        seen[key] = run
    return runs


def compared(folder: Path) -> list[Run]:
    """Return the finished runs in the folder of a comparison.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    jobs = read_json(folder / "plan.json")["jobs"]
    runs = [
        recorded(folder / job["folder"], job["method"], job["setting"])
        for job in jobs
        if (folder / job["folder"] / "run.json").is_file()
    ]
    if not runs:
        raise ValueError(f"{folder}: no run of this comparison is finished")
    return runs


def unfinished(folder: Path) -> list[str]:
    """Return the planned runs without a result, if it is the folder of a comparison."""
    if not (folder / "plan.json").is_file():
        return []
    jobs = read_json(folder / "plan.json")["jobs"]
    return [job["name"] for job in jobs if not (folder / job["folder"] / "run.json").is_file()]
