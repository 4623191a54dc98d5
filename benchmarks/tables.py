# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.tables` writes the pages and the pictures from the results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import criterion, figures, machine, pages, studies
from benchmarks.costs import Cost, costs
from benchmarks.markdown import MB, markdown, where
from hf_sam import METHODS
from hf_sam.host.card import MEASURED

Result = dict[str, Any]
CRITERION = "<!-- what can be recommended -->\n"
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
| `python -m benchmarks.methods ...` | the same for a model and a task of yours, on CPU or GPU; \
with `--no-time` memory alone |
| `python -m benchmarks.studies NAME` | one of `plans/`: radii, GLUE, [CIFAR-10](CIFAR10.md), \
[few examples and wrong labels](EVIDENCE.md) |
| `python -m benchmarks.evidence ...` | the training files of the last of these |
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
        where=(" with LoRA" if settings.get("lora_r") else "")
        + (" (GPU)" if "gpu" in result["hardware"] else ""),
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


def page_of(folder: Path) -> str:
    """Return the page of a folder of results and its folder `cells`."""
    return readme(read_results(folder), read_results(folder / "cells"))


def readme(
    results: dict[str, Result],
    cells: dict[str, Result] | None = None,
) -> str:
    """Return the page.

    Args:
        results: file name without suffix -> result.
        cells: the same of `python -m benchmarks`.
    """
    parts = [INTRODUCTION]
    for name, result in results.items():
        if result["kind"] == "methods":
            parts.append(cost_section(result, f"results/{name}.png"))
            if has_memory(result):
                parts.append(f"![peak memory beyond none in P](results/{name}-memory.png)\n")
    parts += pages.sections(cells or {})
    held = [result for result in results.values() if result["kind"] == "memory"]
    parts += [pages.memory_section(held)] if held else []
    parts += studies.sections(results)
    return "\n".join(parts)


def page_of_studies(name: str, results: dict[str, Result]) -> str:
    """Return a page that shows studies only, such as CIFAR10.md."""
    head = (studies.PLANS / name).read_text(encoding="utf-8")
    if CRITERION in head:
        head = head.replace(CRITERION, criterion.section(results))
    return "\n".join([head, *studies.sections(results, name)])


def has_memory(result: Result) -> bool:
    """Whether a result of `benchmarks.methods` was made with `--memory`."""
    return all(row.get("memory") for row in result["rows"])


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    folder = parser.parse_args(argv).results
    results = read_results(folder)
    for name, result in results.items():
        if result["kind"] == "methods":
            figures.draw_costs(result, folder / f"{name}.png")
            if has_memory(result):
                figures.draw_memory(result, folder / f"{name}-memory.png")
    if folder == machine.RESULTS:
        MEASURED.write_text(measured(results[SHOWN]), encoding="utf-8")
    written = {
        path.name: page_of_studies(path.name, results) for path in studies.PLANS.glob("*.md")
    }
    for name, text in (written | {"README.md": page_of(folder)}).items():
        (folder.parent / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder.parent / name}")


if __name__ == "__main__":
    main()
