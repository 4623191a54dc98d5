# SPDX-License-Identifier: Apache-2.0
r"""Results of GLUE runs: make the runs of a plan, and collect what runs left behind.

python -m benchmarks.glue run benchmarks/plans/minilm.json --output_dir runs
python -m benchmarks.glue collect runs/mrpc-sam-0.05 runs/mrpc-asam

A plan is JSON: `{"common": {FLAG: VALUE}, "runs": {NAME: {FLAG: VALUE}}}` with the flags of
`run_glue.py`. Runs are made one after the other; one whose result is there is skipped, so an
interrupted plan goes on where it was. A result is `benchmarks/results/glue-NAME.json`: what
`run_glue.py` wrote to `all_results.json`, and the metrics of every evaluation during the training.
Collect where the runs were made: the machine is described as it is when collecting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from hf_sam.parts.base import nearest

SCRIPT = Path(__file__).resolve().parents[1] / "glue_scripts" / "run_glue.py"
MAIN_METRIC = {
    "cola": "matthews_correlation",
    "stsb": "combined_score",
}
"""Task -> the metric that decides which epoch is best; for all others accuracy."""


def metric_of(task: str) -> str:
    """Return the name of a task's main metric."""
    return MAIN_METRIC.get(task, "accuracy")


def collect(folder: Path) -> dict[str, Any]:
    """Return the result of the finished run in `folder`.

    Raises:
        FileNotFoundError: the run is not finished, or evaluated nothing.
    """
    results, state = folder / "all_results.json", folder / "trainer_state.json"
    for path in (results, state):
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: has no {path.name}: the run is not finished")
    found = machine.read(results)
    task = str(found["arguments"]["task_name"])
    main = f"eval_{metric_of(task)}"
    log = machine.read(state)["log_history"]
    history = [{k: v for k, v in entry.items() if _is_score(k)} for entry in log if main in entry]
    if main not in found:
        raise FileNotFoundError(f"{results}: has no {main}: give the run --do_eval")
    final = {key: found[key] for key in found if _is_score(key)}
    best = max(history, key=lambda entry: entry[main], default=final)
    return machine.without_folders({
        "kind": "glue",
        "name": folder.name,
        "task": task,
        "history": history,
        "best": best,
        "final": final,
        "hardware": {k: v for k, v in machine.hardware().items() if k in ("cpu", "cores", "gpu")},
        "all_results": found,
    })


def _is_score(key: str) -> bool:
    timing = ("_runtime", "_per_second", "_samples")
    return key in ("epoch", "step") or (key.startswith("eval_") and not key.endswith(timing))


def collect_all(folders: Iterable[Path], results: Path) -> list[Path]:
    """Write the result of every finished run, say which are not finished; return the files."""
    written = []
    for folder in folders:
        try:
            result = collect(folder)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            continue
        path = result_path(folder.name, results)
        machine.write(path, result)
        written.append(path)
        print(f"{path.name}: best {metric_of(result['task'])} {_score(result):.4f}")
    return written


def _score(result: dict[str, Any]) -> float:
    return float(result["best"][f"eval_{metric_of(result['task'])}"])


def result_path(name: str, results: Path) -> Path:
    """Return the file of a run's result."""
    return results / f"glue-{name}.json"


def read_plan(path: Path, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the flags of every run of a plan, or of those in `only`, by name.

    Raises:
        ValueError: the file is no plan, or a name in `only` is not in it.
    """
    try:
        plan = machine.read(path)
        runs = {name: plan["common"] | own for name, own in plan["runs"].items()}
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f'{path}: is no plan, {{"common": {{...}}, "runs": {{NAME: {{...}}}}}}: {error}'
        ) from error
    for name in only:
        if name not in runs:
            raise ValueError(
                f"--only {name}: not in {path}, which has {', '.join(runs)}{nearest(name, runs)}"
            )
    return {name: flags for name, flags in runs.items() if not only or name in only}


def flags_of(values: dict[str, Any]) -> list[str]:
    """Return `--flag value` words; a list becomes several values, a dict JSON."""
    words: list[str] = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        words.append(f"--{name}")
        words += [json.dumps(item) if isinstance(item, dict) else str(item) for item in items]
    return words


def run_plan(runs: dict[str, dict[str, Any]], output_dir: Path, results: Path) -> list[str]:
    """Make the runs whose result is missing, and collect each; return the names of those made.

    Raises:
        subprocess.CalledProcessError: a run failed; what it said is in its `.log` file.
    """
    made = []
    for name, values in runs.items():
        if result_path(name, results).is_file():
            print(f"{name}: there is a result already")
            continue
        folder = output_dir / name
        if not (folder / "all_results.json").is_file():
            print(f"{name}: running, see {folder}.log", flush=True)
            run_glue(values | {"output_dir": str(folder)}, folder)
            made.append(name)
        collect_all([folder], results)
    return made


def run_glue(flags: dict[str, Any], folder: Path) -> None:
    """Run the script with `flags`; what it says goes to the folder's `.log` file beside it.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    log = Path(f"{folder}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        words = [sys.executable, str(SCRIPT), *flags_of(flags)]
        subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of results")
    commands = parser.add_subparsers(dest="action", required=True)
    collecting = commands.add_parser("collect", help="take over finished runs")
    collecting.add_argument("folders", type=Path, nargs="+", help="--output_dir of each run")
    running = commands.add_parser("run", help="make the runs of a plan that have no result")
    running.add_argument("plan", type=Path)
    running.add_argument("--only", nargs="+", default=[], metavar="NAME")
    running.add_argument("--output_dir", type=Path, default=Path("runs"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    settings = _parser().parse_args(argv)
    if settings.action == "collect":
        collect_all(settings.folders, settings.results)
    else:
        runs = read_plan(settings.plan, settings.only)
        run_plan(runs, settings.output_dir, settings.results)


if __name__ == "__main__":
    main()
