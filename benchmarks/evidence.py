# SPDX-License-Identifier: Apache-2.0
r"""Does SAM help when little data, or wrong labels, invite overfitting? Runs, results and a page.

python -m benchmarks.evidence prepare --data_dir glue_data --output_dir data
python -m benchmarks.evidence run benchmarks/plans/evidence-sst2.json --output_dir runs
python -m benchmarks.evidence collect benchmarks/plans/evidence-sst2.json --output_dir runs
python -m benchmarks.evidence page

A plan is `{"common": {FLAG: VALUE}, "runs": {NAME: {FLAG: VALUE}}}`, flags of `run_glue.py`; its
runs are named SETTING-SCHEDULE-METHOD-seedN, in the order in which they are made. `run` skips what
is finished; `collect` writes what is finished into `benchmarks/results/PLAN.json`; `page` writes
EVIDENCE.md from there, "not measured" for the rest.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks import machine
from benchmarks.markdown import markdown, spread
from hf_sam.compare.paired import Paired, in_words, paired, signed
from hf_sam.compare.rows import NONE
from hf_sam.compare.runs import Run, left_behind
from hf_sam.compare.summary import POINTS

SCRIPT = machine.ROOT / "glue_scripts" / "run_glue.py"
PAGE = machine.RESULTS.parent / "EVIDENCE.md"
NOISES = (0, 20, 40)
NAME = re.compile(r"(?P<setting>[^-]+)-(?P<schedule>[^-]+)-(?P<method>.+)-seed(?P<seed>\d+)")
HEAD = (
    *(
        "method",
        "schedule",
        "seeds",
        "on the way",
        "accuracy",
        "difference to `none`",
        "95 % interval",
    ),
    *("better", "passes", "in words"),
)
ABSENT = "not measured"
SHARE = "sam/share_perturbed_updates"


def prepare(source: Path, folder: Path, count: int = 1000, words: int = 12) -> None:
    """Write training files with 0, 20 and 40 % flipped labels, and the validation set as it is.

    Args:
        source: folder of SST-2 with train.parquet and validation.parquet.
        folder: gets sst2-1000-noise40.csv and so on, and sst2-validation.csv.
        count: training phrases, drawn with seed 0.
        words: longer phrases are left out, so that a run takes minutes on a CPU.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    train, validation = (
        Dataset.from_parquet(str(source / f"{name}.parquet")).to_pandas()[["sentence", "label"]]
        for name in ("train", "validation")
    )
    train = train[train.sentence.str.split().str.len() <= words].reset_index(drop=True)
    drawn = train.iloc[np.random.default_rng(0).permutation(len(train))[:count]]
    drawn = drawn.reset_index(drop=True)
    order = np.random.default_rng(0).permutation(count)
    for noise in NOISES:
        noisy, flipped = drawn.copy(), order[: count * noise // 100]
        noisy.loc[flipped, "label"] = 1 - noisy.loc[flipped, "label"]
        noisy.to_csv(folder / f"sst2-{count}-noise{noise}.csv", index=False)
    by_length = validation.sort_values("sentence", key=lambda s: -s.str.len(), kind="stable")
    by_length.to_csv(folder / "sst2-validation.csv", index=False)  # so that little is padded


def read_plan(path: Path) -> dict[str, dict[str, Any]]:
    """Return the flags of every run of a plan by name."""
    plan = machine.read(path)
    return {name: plan["common"] | own for name, own in plan["runs"].items()}


def run_glue(flags: dict[str, Any], folder: Path) -> None:
    """Run the script with `flags`; what it says goes to the folder's `.log` file beside it.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    words = []
    for name, value in flags.items():
        items = value if isinstance(value, list) else [value]
        texts = [json.dumps(item) if isinstance(item, dict) else str(item) for item in items]
        words += [f"--{name}", *texts]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.log").open("w", encoding="utf-8") as log:
        command = [sys.executable, str(SCRIPT), *words]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def run(plan: Path, output_dir: Path) -> None:
    """Make the runs of a plan that are not finished; the weights of finished ones are deleted."""
    for name, flags in read_plan(plan).items():
        folder = output_dir / name
        if (folder / "eval_results.json").is_file():
            continue
        print(f"{name}: running, see {folder}.log", flush=True)
        try:
            run_glue(flags | {"output_dir": str(folder)}, folder)
        except subprocess.CalledProcessError as error:
            print(f"{name}: failed: {error}")
        for weights in folder.glob("*.safetensors"):
            weights.unlink()


def collect(plan: Path, output_dir: Path, results: Path) -> Path:
    """Write the numbers of all finished runs of a plan into one file, and return it."""
    runs = []
    for name in read_plan(plan):
        if not (output_dir / name / "eval_results.json").is_file():
            continue
        found = left_behind(output_dir / name)
        runs.append({
            **named(name),
            "options": found.method,
            "scores": found.metrics,
            "losses": [[e["epoch"], e["loss"]] for e in found.log if "loss" in e][4::5],
            "evaluations": [
                [e["epoch"], e["eval_accuracy"]] for e in found.log if "eval_accuracy" in e
            ],
            "passes": passes(found),
            "seconds_per_update": found.seconds_per_update,
            "memory_mb": found.memory_mb,
            "command": found.command,
        })
    path = results / f"{plan.stem}.json"
    hardware = {k: v for k, v in machine.hardware().items() if k in ("cpu", "cores", "gpu")}
    result = {"kind": "evidence", "plan": plan.name, "hardware": hardware, "runs": runs}
    machine.write(path, machine.without_folders(result | {"versions": machine.versions()}))
    return path


def passes(run: Run) -> float:
    """Return the passes of a mean update, from the share of updates that was perturbed."""
    shares = [e[SHARE] for e in run.log if SHARE in e]
    part = re.search(r"ascent_fraction=([\d.]+)", run.method)
    return 1 + (statistics.fmean(shares) if shares else 0) * (float(part[1]) if part else 1)


def named(name: str) -> dict[str, Any]:
    """Return what a run's name says: setting, schedule, method and seed.

    Raises:
        ValueError: the name says something else.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not named SETTING-SCHEDULE-METHOD-seedN")
    return {**found.groupdict(), "seed": int(found["seed"])}


Runs = Sequence[dict[str, Any]]


def scores(runs: Runs, schedule: str, method: str) -> dict[int, float]:
    """Return seed -> accuracy of the last model in percent."""
    return {
        run["seed"]: 100 * run["scores"]["eval_accuracy"]
        for run in runs
        if (run["schedule"], run["method"]) == (schedule, method)
    }


def row(runs: Runs, schedule: str, method: str) -> list[str]:
    """Return a row of the table of one setting."""
    own, plain = scores(runs, schedule, method), scores(runs, schedule, NONE)
    if not own:
        return [f"`{method}`", schedule, "0", "", ABSENT, *[""] * 5]
    found = paired(own, plain) if method != NONE else None
    cost = f"{mean_passes(runs, schedule, method):.2f}"
    way = on_the_way(runs, schedule, method)
    shown = [f"`{method}`", schedule, str(len(own)), way, spread(list(own.values()))]
    if found is None:
        return [*shown, *[""] * 3, cost, ""]
    several = len(found.values) > 1
    return [
        *shown,
        _amount(found),
        f"{signed(found.low, POINTS)} to {signed(found.high, POINTS)}" if several else "",
        f"{found.better} of {len(found.values)}",
        cost,
        in_words(found, None, POINTS),
    ]


def on_the_way(runs: Runs, schedule: str, method: str) -> str:
    """Return the mean accuracies of the evaluations before the last."""
    own = [r["evaluations"] for r in runs if (r["schedule"], r["method"]) == (schedule, method)]
    before = list(zip(*own, strict=True))[:-1]
    return ", ".join(f"{100 * statistics.fmean(v for _, v in at):.1f}" for at in before)


def _amount(found: Paired) -> str:
    amount = signed(found.mean, POINTS)
    return f"{amount} ± {found.deviation:.2f}" if len(found.values) > 1 else amount


def mean_passes(runs: Runs, schedule: str, method: str) -> float:
    """Return the passes of a mean update over the seeds."""
    return statistics.fmean(
        run["passes"] for run in runs if (run["schedule"], run["method"]) == (schedule, method)
    )


def schedules_part(runs: Runs, schedules: Sequence[str]) -> Iterator[str]:
    """Yield what the schedule does to `none`, and what a method adds to that."""
    first, *others = schedules
    plain = scores(runs, first, NONE)
    for schedule in others:
        moved = paired(scores(runs, schedule, NONE), plain)
        if moved is None:
            yield f"* What `{schedule}` does to `none` itself, against `{first}`: {ABSENT}."
            continue
        words = in_words(moved, None, POINTS)
        yield f"* `none` with `{schedule}` against `none` with `{first}`: {words}."
        for method in dict.fromkeys(r["method"] for r in runs if r["schedule"] == schedule):
            whole = paired(scores(runs, schedule, method), plain)
            own = paired(scores(runs, schedule, method), scores(runs, schedule, NONE))
            if method != NONE and whole is not None and own is not None:
                yield (
                    f"* `{method}` with `{schedule}` against `none` with `{first}`: "
                    f"{_amount(whole)} points over {len(whole.values)} seeds, of which the "
                    f"method's own part is {_amount(own)}."
                )


def section(plan: Path, runs: Runs, setting: str, about: str) -> list[str]:
    """Return the text of one setting."""
    planned = [named(name) for name in read_plan(plan)]
    rows = dict.fromkeys((n["schedule"], n["method"]) for n in planned if n["setting"] == setting)
    schedules = list(dict.fromkeys(schedule for schedule, _ in rows))
    own = [run for run in runs if run["setting"] == setting]
    ordered = sorted(rows, key=lambda r: (schedules.index(r[0]), r[1] != NONE))
    table = markdown(HEAD, [row(own, *which) for which in ordered])
    total = sum(n["setting"] == setting for n in planned)
    return [
        f"## {about}",
        f"{len(own)} of {total} planned runs are finished.",
        table,
        "\n".join(["Which part of a gain is the schedule's:\n", *schedules_part(own, schedules)]),
    ]


INTRODUCTION = """\
# Does it help? What was measured

Every number comes from a file in `results/`, with the command of every run, the versions and the
machine. This page is written by `python -m benchmarks.evidence page`; do not edit it.

MiniLM-L6 (22.7 M parameters) on 1,000 phrases of SST-2's training set of at most 12 words (49,042
of 67,349 are), 10 epochs, batches of 32 of similar length, AdamW at 5e-5 with weight decay 0.01 and
20 updates of warm-up; scored once, after the last update, on all 872 validation sentences. *Linear*
falls to zero from there; *wsd* is warm-up, stable, decay, its decay the last 30 % of the 320
updates. `tail` is `{tail}`. Radii are reported side by side; none was chosen by these scores.

*On the way* is the mean accuracy after 3.3 and 6.7 epochs (it takes right labels to stop there),
*accuracy* that of the last model, in percent, mean ± standard deviation over the seeds. The
*difference* is to `none` with the same seed **and the same schedule**. Only what is outside of both
the bootstrap interval and Student's, with at least 3 seeds, is called better or worse; the
bootstrap is too narrow for a few seeds. *Passes* are forward and backward passes over the batch in
a mean update; seconds are in the results, but other work used the machine at the same time, so they
say little.
"""

SECTIONS = {
    "noise40": "40 % of the training labels flipped",
    "noise0": "Labels as they are",
}
OPEN = """\
## Not measured

20 % flipped labels; CoLA with 2,000 and MRPC with 1,000 examples; LoRA; images with wrong labels on
a network that can overfit; the tasks in full, and larger models, which need a GPU.
"""


def page(plan: Path, result: dict[str, Any]) -> str:
    """Return the page."""
    runs = result["runs"]
    tail = next((run["options"] for run in runs if run["method"] == "tail"), "the tail")
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    hardware = ", ".join(f"{v} {k}" if k == "cores" else v for k, v in result["hardware"].items())
    commands = str(__doc__).split("\n\n")[1]
    parts = [
        INTRODUCTION.format(tail=tail).rstrip(),
        f"{hardware}; {versions}.",
        f"```bash\n{commands}\n```",
    ]
    for setting, about in SECTIONS.items():
        parts += section(plan, runs, setting, about)
    return "\n\n".join([*parts, OPEN])


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="action", required=True)
    preparing = commands.add_parser("prepare", help="write the training files")
    preparing.add_argument("--data_dir", type=Path, required=True, help="has sst2/train.parquet")
    preparing.add_argument("--output_dir", type=Path, default=Path("data"))
    for name in ("run", "collect"):
        command = commands.add_parser(name)
        command.add_argument("plan", type=Path)
        command.add_argument("--output_dir", type=Path, default=Path("runs"))
    commands.add_parser("page", help="write EVIDENCE.md from the results")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    given = _parser().parse_args(argv)
    if given.action == "prepare":
        prepare(given.data_dir / "sst2", given.output_dir)
    elif given.action == "run":
        run(given.plan, given.output_dir)
    elif given.action == "collect":
        print(collect(given.plan, given.output_dir, machine.RESULTS))
    else:
        plan = Path(__file__).parent / "plans" / "evidence-sst2.json"
        result = machine.read(machine.RESULTS / plan.name)
        PAGE.write_text(page(plan, result), encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
