# SPDX-License-Identifier: Apache-2.0
r"""Which radius? Fine-tune on a part of a training set and score on the rest, over radii and seeds.

python -m benchmarks.radius split --data_dir DIR --task_name mrpc --train 2000 --validation 1000 \
    --output_dir split
python -m benchmarks.radius run benchmarks/plans/radius-mrpc.json --output_dir runs

`split` cuts the task's training set, so that no radius is chosen on its validation set. A plan is
one of `benchmarks.glue` with `"seeds": [...]`, what it is `"about"` and the command that gets its
data ready (`"prepare"`); its runs are named as in the table, and `none` must be among them. All
runs of the first seed are made before those of the second. Each finished run is added to
`benchmarks/results/PLAN.json` at once; runs that are there are skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks import glue, machine
from benchmarks.markdown import spread

NONE = "none"


def split(source: Path, train: int, validation: int, folder: Path, seed: int = 0) -> None:
    """Write `train` and `validation` examples of a training set, each label as frequent as there.

    Args:
        source: the training set, a parquet file with a `label` column.
        train: examples to train on.
        validation: examples to score on.
        folder: gets train.parquet and validation.parquet.
        seed: of the draw.

    Raises:
        ValueError: the training set has fewer examples than are asked for.
    """
    data = Dataset.from_parquet(str(source))
    if train + validation > len(data):
        raise ValueError(
            f"--train {train} --validation {validation}: {source.name} has {len(data)} examples"
        )
    parts = data.class_encode_column("label") if not _is_class(data) else data
    cut = parts.train_test_split(validation, train, seed=seed, stratify_by_column="label")
    folder.mkdir(parents=True, exist_ok=True)
    cut["train"].to_parquet(str(folder / "train.parquet"))
    cut["test"].to_parquet(str(folder / "validation.parquet"))


def _is_class(data: Dataset) -> bool:
    return hasattr(data.features["label"], "names")


def run_plan(path: Path, output_dir: Path, results: Path) -> Path:
    """Make the runs of a plan that have no result; return the file of all results.

    Raises:
        ValueError: the file is no plan, or has no `none` or no seeds.
        subprocess.CalledProcessError: a run failed; what it said is in its `.log` file.
    """
    runs, seeds = glue.read_plan(path), machine.read(path).get("seeds")
    if not seeds or NONE not in runs:
        raise ValueError(
            f'{path}: a plan for radii has "seeds": [...] and a run named {NONE!r}, which all '
            "others are compared with"
        )
    target = results / f"{path.stem}.json"
    found = machine.read(target)["runs"] if target.is_file() else []
    for seed in seeds:
        for name, flags in runs.items():
            if any(run["name"] == name and run["seed"] == seed for run in found):
                continue
            folder = output_dir / path.stem / f"{name}-seed{seed}"
            print(f"{folder.name}: running, see {folder}.log", flush=True)
            if not (folder / "all_results.json").is_file():
                glue.run_glue(flags | {"seed": seed, "output_dir": str(folder)}, folder)
            found.append(_reduced(name, seed, folder))
            machine.write(target, _result(path, found))
    return target


def _reduced(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return what the table needs of a finished run."""
    whole = glue.collect(folder)
    log = machine.read(folder / "trainer_state.json")["log_history"]
    everything = whole["all_results"]
    lengths = [e["sam/perturbation_norm"] for e in log if "sam/perturbation_norm" in e]
    return {
        "name": name,
        "seed": seed,
        "command": everything["command"],
        "method": everything["sam"],
        "task": whole["task"],
        "score": whole["final"][f"eval_{glue.metric_of(whole['task'])}"],
        "eval_loss": whole["final"]["eval_loss"],
        "train_loss": [e["loss"] for e in log if "loss" in e][-1],
        "perturbation_norm": statistics.fmean(lengths) if lengths else None,
    }


def _result(path: Path, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    hardware, plan = machine.hardware(), machine.read(path)
    return machine.without_folders({
        "kind": "radius",
        "prepare": plan.get("prepare", ""),
        "command": f"python -m benchmarks.radius run benchmarks/plans/{path.name}",
        "about": plan.get("about", ""),
        "task": runs[0]["task"],
        "hardware": {k: v for k, v in hardware.items() if k in ("cpu", "cores", "gpu")},
        "versions": machine.versions(),
        "runs": list(runs),
    })


@dataclass(frozen=True)
class Line:
    """One setting over the seeds that it and `none` have in common.

    Attributes:
        name: of the setting.
        scores: in percent, a seed each.
        gains: over `none` with the same seed, in points.
        norm: mean length of the perturbations.
        losses: on the examples that are scored, a seed each.
    """

    name: str
    scores: tuple[float, ...]
    gains: tuple[float, ...]
    norm: float | None
    losses: tuple[float, ...]


def lines(result: dict[str, Any]) -> list[Line]:
    """Return the settings of a result in the order of the plan."""
    runs = result["runs"]
    plain = {run["seed"]: run["score"] for run in runs if run["name"] == NONE}
    found = []
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name and run["seed"] in plain]
        if not own:
            continue
        norms = [run["perturbation_norm"] for run in own if run["perturbation_norm"] is not None]
        found.append(
            Line(
                name,
                tuple(100 * run["score"] for run in own),
                tuple(100 * (run["score"] - plain[run["seed"]]) for run in own),
                statistics.fmean(norms) if norms else None,
                tuple(run["eval_loss"] for run in own),
            )
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.radius",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="action", required=True)
    cutting = commands.add_parser("split", help="cut a task's training set in two")
    cutting.add_argument("--data_dir", type=Path, required=True, help="has <task>/train.parquet")
    cutting.add_argument("--task_name", required=True)
    cutting.add_argument("--train", type=int, required=True, help="examples to train on")
    cutting.add_argument("--validation", type=int, required=True, help="examples to score on")
    cutting.add_argument("--seed", type=int, default=0)
    cutting.add_argument("--output_dir", type=Path, required=True, help="gets <task>/*.parquet")
    running = commands.add_parser("run", help="make the runs of a plan that have no result")
    running.add_argument("plan", type=Path)
    running.add_argument("--output_dir", type=Path, default=Path("runs"))
    running.add_argument("--results", type=Path, default=machine.RESULTS)
    given = parser.parse_args(argv)
    if given.action == "split":
        source = given.data_dir / given.task_name / "train.parquet"
        folder = given.output_dir / given.task_name
        split(source, given.train, given.validation, folder, given.seed)
    else:
        path = run_plan(given.plan, given.output_dir, given.results)
        for line in lines(json.loads(path.read_text(encoding="utf-8"))):
            print(f"{line.name:28} {spread(line.scores):14} {spread(line.gains)}")


if __name__ == "__main__":
    main()
