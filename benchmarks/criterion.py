# SPDX-License-Identifier: Apache-2.0
"""Which setting can be recommended: what it lost at worst, what it gained, and at what price."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.costs import costs
from benchmarks.markdown import markdown
from benchmarks.pages import usual_cost
from benchmarks.rows import ROWS
from hf_sam import METHODS
from hf_sam.compare.paired import ENOUGH, signed
from hf_sam.compare.rows import NONE

PRICE = 1.10
"""Most time of an update, relative to `none`."""
SLACK = 0.5
"""Standard deviations of `none` over its seeds that a task's mean difference may be below zero."""
GROUPS = {
    "a pretrained encoder": (
        "methods-minilm-mrpc",
        ("evidence-sst2-noise0", "evidence-cola", "evidence-sst2-noise40"),
    ),
    "LoRA": ("methods-minilm-mrpc-lora", ("evidence-lora-noise0", "evidence-lora-noise40")),
}
"""For whom a setting is recommended -> where its time was measured, the studies that judge it."""
SCHEDULE = "lr_scheduler_type="

TEXT = """\
## What can be recommended

A setting passes if no task's mean difference to `none` (same seeds, same schedule, at least
{enough} of them) is more than half a standard deviation of `none` below zero, if the mean over the
tasks is above zero, and if it takes at most {price:.2f} times the time. A cell is the mean
difference, in brackets half the deviation of `none`; *time* is in CPU seconds, from
[what an update costs](README.md).
"""

Key = tuple[str, str]


def section(results: Mapping[str, Any]) -> str:
    """Return the section, a table for each group of tasks."""
    tables = [
        f"For {group}:\n\n{_table(results, tasks, prices(results[measured]))}"
        for group, (measured, tasks) in GROUPS.items()
    ]
    return "\n\n".join([TEXT.format(enough=ENOUGH, price=PRICE).rstrip(), *tables]) + "\n"


def prices(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the time of every method that was measured, in CPU seconds where there are some."""
    found = costs(result)
    rows = {key: ROWS.get(key, key) for key in METHODS}
    return {key: usual_cost(found[row])[0] for key, row in rows.items() if row in found}


def _table(results: Mapping[str, Any], tasks: Sequence[str], prices: Mapping[str, float]) -> str:
    found = {task: judged(results[task]) if task in results else {} for task in tasks}
    keys = dict.fromkeys(key for lines in found.values() for key in lines)
    rows = [
        _row(key, [found[task].get(key) for task in tasks], prices.get(key[1].partition(":")[0]))
        for key in keys
    ]
    titles = [task.removeprefix("evidence-") for task in tasks]
    return markdown(("method", "schedule", *titles, "mean", "time", "passes?"), rows)


def judged(result: Mapping[str, Any]) -> dict[Key, tuple[float, float]]:
    """Return (schedule, method) -> mean difference to `none`, and the allowed loss.

    Args:
        result: of a study. Lines with too few seeds are left out.
    """
    found = {}
    for setting in result["settings"]:
        words = setting["name"].split(", ")
        schedule = next((w[len(SCHEDULE) :] for w in words if w.startswith(SCHEDULE)), "")
        plain = next(line for line in setting["lines"] if line["method"] == NONE)
        for line in setting["lines"]:
            difference = line["difference"]
            if difference is not None and len(difference["values"]) >= ENOUGH:
                gain = difference["mean"] * (-1 if result["less_is_better"] else 1)
                key = (schedule or "linear", line["method"])
                found[key] = gain, SLACK * plain["deviation"]
    return found


def _row(key: Key, cells: list[tuple[float, float] | None], price: float | None) -> list[str]:
    schedule, method = key
    known = [cell for cell in cells if cell is not None]
    mean = statistics.fmean(gain for gain, _ in known)
    texts = ["" if c is None else f"{signed(c[0], ' points')} ({c[1]:.2f})" for c in cells]
    time = "not measured" if price is None else f"{price:.2f}"
    return [f"`{method}`", schedule, *texts, f"{mean:+.2f}", time, _verdict(cells, mean, price)]


def _verdict(cells: list[tuple[float, float] | None], mean: float, price: float | None) -> str:
    """Return "**yes**", or what it fails at."""
    fails = []
    if None in cells:
        fails.append("tasks missing")
    if any(cell is not None and cell[0] < -cell[1] for cell in cells):
        fails.append("loses")
    if mean <= 0:
        fails.append("no gain")
    if price is None or price > PRICE:
        fails.append("price")
    return ", ".join(fails) or "**yes**"
