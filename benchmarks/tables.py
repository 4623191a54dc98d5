# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.tables` writes README.md and the pictures from the results, as they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, pages
from benchmarks.costs import Cost, costs
from benchmarks.glue import metric_of
from benchmarks.markdown import MB, markdown, spread, where
from benchmarks.radius import NONE, lines
from hf_sam import METHODS
from hf_sam.host.card import MEASURED

Result = dict[str, Any]
SHOWN = "methods-minilm-mrpc"
"""The result that model cards show."""

INTRODUCTION = """\
# Benchmarks

What each method costs, and what it brings, as measured: every number here comes from a file in
`results/`, which holds the command, the versions, the machine, the seed and all samples. This page
and its pictures are written by `python -m benchmarks.tables`; do not edit them.

| command | does |
|---|---|
| `make bench` | measures time and memory on this machine, into `outputs/bench`; resumable |
| `python -m benchmarks --only sam --list` | which parts of that there are |
| `python -m benchmarks.methods ...` | the same for a model and a task of yours, on CPU or GPU |
| `python -m benchmarks.glue_memory ...` | peak memory of methods on GLUE tasks |
| `python -m benchmarks.glue run PLAN` | the accuracy runs of a plan (`plans/`), resumable |
| `python -m benchmarks.glue collect DIR ...` | takes over finished runs of `run_glue.py` |
| `python -m benchmarks.radius run PLAN` | a study of the radius, resumable |
| `python -m benchmarks.evidence ...` | few examples, wrong labels: [EVIDENCE.md](EVIDENCE.md) |
| `python -m benchmarks.cifar10 ...` | image classifiers on CIFAR-10: [CIFAR10.md](CIFAR10.md) |
| `python -m benchmarks.gpu ...` | all that needs a GPU, in a few minutes: see below |
| `python -m benchmarks.tables` | this page |

## The minutes on a GPU

```bash
python -m benchmarks.gpu --pack data --model_name_or_path minilm --glue_dir glue_data
python -m benchmarks.gpu --rehearse --output_dir rehearsal
python -m benchmarks.gpu --minutes 8 --output_dir on_gpu --data_dir data
```

The first line writes the 46 MB that the accuracy runs read (the model in bfloat16, 1,000 phrases of
SST-2 with 40 % wrong labels, its validation set); without `--data_dir` they train the embedded
task. The second goes through everything on a CPU in small. The third runs, each in a process of its
own with its own limit, first the tests marked `gpu`, then time, memory and kernels on five models,
then the accuracy runs side by side, then smaller questions; it ends within its minutes, and the
same command goes on where it was. `on_gpu/README.md` says what became of each part; the files of
`on_gpu/cells` belong into `results/cells`, from where this page shows them. Beside torch,
transformers and accelerate it needs datasets, evaluate, dill, multiprocess, peft, scikit-learn and
what `hf-sam[report]` names; pytorch-optimizer and pytest-xdist are used where they are there. With
`PYTHONPATH=.` nothing need be installed from here.
"""

COSTS = """\
## What an update costs: {model} on {task}{where}

{updates} updates of {batch_size} x {length} tokens, {precision}AdamW at {learning_rate:g}, seed \
{seed}; {parameters:.1f} M parameters, so 1 P = {p:.0f} MB. All rows take turns, update by update, \
in one process; the first {drop} updates do not count. `none` takes {seconds:.3f} s per update \
(quartiles {low:.3f} to {high:.3f}).

{hardware}

```bash
{command}
```

{table}

*Time* is seconds per update relative to the same update of `none`: the median, in brackets the
quartiles; for rows with updates of one pass and of two (`looksam`, `late_sam`, `ss_sam`) the mean
of the medians of both kinds, in the mix that the schedule has on average. *CPU* is the same of the
process's CPU seconds, which leave out the time that other programs took away. *Predicted* follows
from the method's definition, for a backward pass that takes twice its forward and nothing beside
the passes. *Passes* are examples forwarded and gone backward through, per example of the update.
Renewals of a mask (the first update of `ssam_f` and `ssam_d`) are left out of all of these.
*Memory* is the peak beyond that of `none`, in brackets in an update that renews a mask. *Loss* is
that of the first batches, without dropout, before and after the run.

![seconds per update relative to none]({picture})
"""

RADIUS = """\
## Which radius? {task}

{about}.

Seeds {seeds}; {hardware}; the score after the last update in percent, mean and standard deviation
over the seeds; the gain over `none` is taken seed by seed, *loss* on the same examples.
*Length* is the mean length of the perturbations. Every command is in `{file}`.

```bash
{prepare}
{command}
```

{table}

![score over the radius]({picture})
"""

SCORES = """\
## What it brings: {title}

{table}
"""

SCORES_NOTE = """
*Best* is the best of the evaluations during the training, after that many epochs; *last* is the
model at the end. Memory is the peak of the process on a CPU, of torch's allocator on a GPU.
Seconds are in the results, but these runs shared their machine: compare times above.
"""


def cost_table(result: Result) -> str:
    """Return the Markdown table of a result of `benchmarks.methods`."""
    found = costs(result)
    size = result["parameter_bytes"]
    head = [
        "method",
        "time",
        "predicted",
        "target",
        "met?",
        "CPU",
        "passes",
        "memory (MB)",
        "(P)",
        "loss",
    ]
    rows = []
    for row in result["rows"]:
        cost, predicted = found[row["text"]], row["predicted"]
        rows.append([
            f"`{row['text']}`",
            f"{cost.ratio:.2f} ({cost.low:.2f} to {cost.high:.2f})",
            f"{predicted['time']:.2f}",
            "" if row["target"] is None else f"{row['target']:.2f}",
            _verdict(cost, row["target"]),
            "" if cost.cpu is None else f"{cost.cpu:.2f}",
            _passes(cost, predicted),
            _memory(cost, MB, ".0f"),
            _memory(cost, size, ".2f"),
            "{:.3f} → {:.3f}".format(*row["fixed_loss"]),
        ])
    return markdown(head, rows)


def _verdict(cost: Cost, target: float | None) -> str:
    if target is None:
        return ""
    return "yes" if cost.ratio <= target else "**no**"


def _passes(cost: Cost, predicted: dict[str, float]) -> str:
    """Return forwards / backwards, and the prediction where it differs by more than the coin."""
    text = f"{cost.forwards:.2f} / {cost.backwards:.2f}"
    pairs = ((cost.forwards, predicted["forwards"]), (cost.backwards, predicted["backwards"]))
    if all(abs(measured - wanted) < 0.005 for measured, wanted in pairs):
        return text
    return f"{text} (predicted {predicted['forwards']:.2f} / {predicted['backwards']:.2f})"


def _memory(cost: Cost, unit: float, form: str) -> str:
    if cost.extra is None:
        return ""
    text = format(cost.extra / unit, form)
    if cost.extra_renewal is not None:
        text += f" ({format(cost.extra_renewal / unit, form)})"
    return text


def cost_section(result: Result, picture: str) -> str:
    """Return what the page says about one result of `benchmarks.methods`."""
    settings = result["settings"]
    plain = next(row for row in result["rows"] if row["text"] == "none")
    seconds = sorted(plain["seconds"][settings["drop"] :])
    return COSTS.format(
        **settings,
        model=result["model"],
        task=result["task"].upper(),
        where=" (GPU)" if "gpu" in result["hardware"] else "",
        precision="bfloat16 autocast, " if settings["bf16"] else "",
        parameters=result["parameters"] / 1e6,
        p=result["parameter_bytes"] / MB,
        seconds=seconds[len(seconds) // 2],
        low=seconds[len(seconds) // 4],
        high=seconds[3 * len(seconds) // 4],
        hardware=where(result["hardware"], result["versions"]),
        command=result["command"],
        table=cost_table(result),
        picture=picture,
    )


def radius_section(name: str, result: Result) -> str:
    """Return what the page says about one result of `benchmarks.radius`."""
    seeds = sorted({run["seed"] for run in result["runs"]})
    metric = metric_of(result["task"]).replace("_", " ")
    rows = [
        [
            line.name,
            str(len(line.scores)),
            spread(line.scores),
            "" if line.name == NONE else spread(line.gains),
            spread(line.losses, 3),
            "" if line.norm is None else f"{line.norm:.3f}",
        ]
        for line in lines(result)
    ]
    hardware = result["hardware"]
    return RADIUS.format(
        task=" ".join(dict.fromkeys([name.removeprefix("radius-"), result["task"]])).upper(),
        about=result["about"],
        prepare=result["prepare"],
        seeds=", ".join(map(str, seeds)),
        hardware=hardware.get("gpu", f"{hardware['cpu']}, {hardware['cores']} cores"),
        file=f"results/{name}.json",
        command=result["command"],
        table=markdown(["setting", "seeds", metric, "gain over `none`", "loss", "length"], rows),
        picture=f"results/{name}.png",
    )


def score_sections(results: Sequence[Result]) -> list[str]:
    """Return what the page says about the GLUE runs, a section per task."""
    sections = []
    for task in dict.fromkeys(result["task"] for result in results):
        runs = sorted((r for r in results if r["task"] == task), key=_order)
        sections.append(SCORES.format(title=task.upper(), table=_score_table(runs)))
    return sections + [SCORES_NOTE] if sections else []


def _order(result: Result) -> tuple[Any, ...]:
    method = result["all_results"]["sam"]["method"]
    return (_schedule(result), method["name"] != "Plain", method["name"], str(method.get("rho")))


def _score_table(results: Sequence[Result]) -> str:
    head = ["run", "method", "radius", "schedule", "seed", "best", "last", "max memory (MB)"]
    return markdown(head, [_score_row(result) for result in results])


def _score_row(result: Result) -> list[str]:
    everything = result["all_results"]
    method, arguments = everything["sam"]["method"], everything["arguments"]
    best = _scores(result["best"], result["task"])
    if result["history"]:
        best += f" (epoch {result['best']['epoch']:g})"
    return [
        result["name"],
        f"`{arguments.get('sam', 'sam')}`",
        _radius(method),
        _schedule(result),
        str(arguments.get("seed", 42)),
        best,
        _scores(result["final"], result["task"]),
        f"{everything['max memory (MB)']:.0f}",
    ]


def _radius(method: dict[str, Any]) -> str:
    rho = method.get("rho")
    return "" if rho is None else f"{rho:g}" if isinstance(rho, float) else str(rho)


def _schedule(result: Result) -> str:
    arguments = result["all_results"]["arguments"]
    batch = arguments.get("per_device_train_batch_size", 8)
    words = ["in bfloat16"] if arguments.get("bf16") else []
    if arguments.get("train_sampling_strategy") == "group_by_length":
        words.append("by length")
    epochs = arguments.get("num_train_epochs", 3)
    if arguments.get("max_steps", -1) > 0:
        return ", ".join([f"{arguments['max_steps']} updates of {batch}", *words])
    many = f"{epochs:g} epoch" + ("s" if epochs != 1 else "")
    return ", ".join([f"{many}, batches of {batch}", *words])


def _scores(scores: dict[str, float], task: str) -> str:
    main = metric_of(task)
    others = ("accuracy", "f1", "accuracy_mm", "matthews_correlation", "pearson", "spearmanr")
    names = [main] + [name for name in others if name != main and f"eval_{name}" in scores]
    short = {"accuracy": "acc", "matthews_correlation": "MCC", "f1": "F1", "accuracy_mm": "acc mm"}
    return ", ".join(f"{short.get(n, n)} {100 * scores[f'eval_{n}']:.1f}" for n in names)


def page_of(folder: Path) -> str:
    """Return the page of a folder of results and its folders `cells` and `memory`."""
    return readme(*(read_results(part) for part in (folder, folder / "cells", folder / "memory")))


def readme(
    results: dict[str, Result],
    cells: dict[str, Result] | None = None,
    memory: dict[str, Result] | None = None,
) -> str:
    """Return the page.

    Args:
        results: file name without suffix -> result.
        cells: the same of `python -m benchmarks`.
        memory: the same of `python -m benchmarks.glue_memory`.
    """
    parts = [INTRODUCTION]
    for name, result in results.items():
        if result["kind"] == "methods":
            parts.append(cost_section(result, f"results/{name}.png"))
            if has_memory(result):
                parts.append(f"![peak memory beyond none in P](results/{name}-memory.png)\n")
    parts += [radius_section(n, r) for n, r in results.items() if r["kind"] == "radius"]
    parts += pages.sections(cells or {}, memory or {})
    glue = [result for result in results.values() if result["kind"] == "glue"]
    parts += score_sections(glue)
    parts += [
        f"![{task.upper()} over the epochs](results/glue-{task}.png)\n"
        for task in tasks_with_curves(glue)
    ]
    return "\n".join(parts)


def has_memory(result: Result) -> bool:
    """Whether a result of `benchmarks.methods` was made with `--memory`."""
    return all(row.get("memory") for row in result["rows"])


def tasks_with_curves(results: Iterable[Result]) -> list[str]:
    """Return the tasks that were evaluated more than once in some run."""
    return list(dict.fromkeys(r["task"] for r in results if len(r["history"]) > 1))


def read_results(folder: Path) -> dict[str, Result]:
    """Return all results of a folder by name."""
    return {path.stem: machine.read(path) for path in sorted(folder.glob("*.json"))}


def measured(result: Result) -> str:
    """Return, as JSON, what a model card says of the methods that were measured."""
    plain, *others = costs(result).items()
    assert plain[0] == "none"
    found = {
        key: {
            "time": f"{cost.ratio:.2f}",
            "memory": None
            if cost.extra is None
            else f"{cost.extra / result['parameter_bytes']:.2f}",
        }
        for key, cost in others
        if key in METHODS
    }
    where = f"MiniLM on {result['task'].upper()}, {result['hardware']['cpu']}"
    return json.dumps({"setting": {"where": where}, "methods": found}, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and its pictures."""
    from benchmarks import figures

    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    folder = parser.parse_args(argv).results
    results = read_results(folder)
    for name, result in results.items():
        if result["kind"] == "methods":
            figures.draw_costs(result, folder / f"{name}.png")
            if has_memory(result):
                figures.draw_memory(result, folder / f"{name}-memory.png")
        elif result["kind"] == "radius":
            figures.draw_radius(result, folder / f"{name}.png")
    glue = [result for result in results.values() if result["kind"] == "glue"]
    for task in tasks_with_curves(glue):
        figures.draw_scores([r for r in glue if r["task"] == task], folder / f"glue-{task}.png")
    figures.draw_cells(read_results(folder / "cells"), folder)
    if folder == machine.RESULTS:
        MEASURED.write_text(measured(results[SHOWN]), encoding="utf-8")
    page = folder.parent / "README.md"
    page.write_text(page_of(folder), encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
