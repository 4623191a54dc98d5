# SPDX-License-Identifier: Apache-2.0
"""What the page says about the cells of `make bench` and about memory on GLUE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.costs import Cost, costs
from benchmarks.loops import RIVALS
from benchmarks.markdown import MB, markdown
from benchmarks.rows import TARGETS

Result = dict[str, Any]
Results = Mapping[str, Result]
WANTED = (("cpu", "fp32"), ("cuda", "bf16"), ("cuda", "fp16"))
"""Devices and precisions of which the page says that they are not measured."""
FAMILY = ("bert-1m", "bert-4m", "bert-11m", "bert-29m", "bert-335m", "bert-1.3b")
"""Models that only show how the cost of `sam` grows."""

TIMES = """\
## Time on several models: {title}

{unit} per update relative to the same update of `none`: median, in brackets the quartiles. {about}

{table}
"""

CELLS = """\
Weights and data are random, the shapes the named models'; a column's head says examples x tokens
(or pixels of an edge). A cell is one method and `none` (and, where there is one, its rival) in one
process, in turns, update by update, in an order drawn anew for each; its file in `cells/` has all
samples. Other programs ran on the same cores: they meet all rows alike, and only ratios are given.
On a CPU they are of the process's CPU seconds, which leave out the time that others took away.

```bash
python -m benchmarks --only NAME   # NAME: a file of cells/ without .json
```
"""

BESIDE = """\
## Beside a hand-written loop and pytorch-optimizer: {title}

The rival is a plain loop without Trainer, on the same batches with the same optimizer, clipping and
schedule: `loop:sam` is SAM written by hand, tensor by tensor; `peer:CLASS` is pytorch-optimizer's
class, used as its docstring shows. Both times are relative to `none`, the plain Trainer. *Slower?*
asks whether ours takes longer: *no*; *within noise* where the quartiles overlap; or **yes**.

{table}
"""

GROWTH = """\
## How the cost of SAM grows: {title}

*Beside the passes* is the share of a SAM update in which `training_step` does something else than
forward and backward: norms, perturbing, restoring, readings.

{table}
"""

KERNELS = """\
## Kernels: {title}

What an update launches on the GPU, and what of that is launched beside the passes: clipping and the
optimizer, and a method's own work. The most of the updates after the first.

{table}
"""

MISSING = """\
## Not measured

Time and memory of several models, beside a hand-written loop and pytorch-optimizer, and how the
cost grows: {what}. `python -m benchmarks --output_dir benchmarks/results/cells` measures what is
missing for the machine that it runs on.
"""

GLUE_MEMORY = """\
## Memory on GLUE: {title}

Most bytes that torch holds in {updates} updates of {batch_size} examples cut to {length} tokens,
{precision}padded to the longest of the batch as in `run_glue.py`: model, gradients, AdamW, method
and activations, all methods on the same batches; in MB (2^20 bytes), with what is beyond `none` in
MB and in P ({p:.0f} MB). Masks are renewed in two of the updates. {counted}

{table}

```bash
{commands}
```
"""
COUNTED = {
    "cpu": "Counted by torch's profiler on a CPU.",
    "cuda": "Counted by torch's allocator.",
}


@dataclass(frozen=True)
class Entry:
    """A row of a cell.

    Attributes:
        cell: the fields of `benchmarks.cells.Cell`.
        text: of the row.
        cost: relative to the cell's `none`.
        row: as measured.
        result: of the cell.
    """

    cell: dict[str, Any]
    text: str
    cost: Cost
    row: dict[str, Any]
    result: Result

    @property
    def size(self) -> str:
        """Model and batch."""
        return f"{self.cell['model']} {self.cell['batch_size']} x {self.cell['length']}"

    @property
    def setting(self) -> tuple[str, str]:
        """Device and precision."""
        return self.cell["device"], self.cell["precision"]

    @property
    def extra(self) -> float:
        """Peak memory beyond `none` in P."""
        assert self.cost.extra is not None
        return self.cost.extra / self.result["parameter_bytes"]


def entries(cells: Results) -> list[Entry]:
    """Return the rows of all cells beside `none`, those measured for themselves first."""
    found = []
    for result in cells.values():
        of = costs(result)
        for row in result["rows"]:
            if row["text"] != "none":
                found.append(Entry(result["cell"], row["text"], of[row["text"]], row, result))
    return sorted(found, key=lambda e: e.text not in e.cell["method"].split())


def sections(cells: Results) -> list[str]:
    """Return the sections, and what is not measured.

    Args:
        cells: results of `python -m benchmarks` by name.
    """
    found = entries(cells)
    parts = []
    for device, precision in dict.fromkeys(e.setting for e in found):
        chosen = [e for e in found if e.setting == (device, precision)]
        parts += _sections_of(chosen, f"{device.upper()}, {precision}")
    if parts:
        parts.append(CELLS)
    missing = [f"{d.upper()} {p}" for d, p in WANTED if (d, p) not in {e.setting for e in found}]
    return parts + [MISSING.format(what=", ".join(missing))] * bool(missing)


def _sections_of(found: Sequence[Entry], title: str) -> list[str]:
    parts = []
    plain = usual(found)
    if plain:
        unit = "CPU seconds" if title.startswith("CPU") else "Seconds"
        parts.append(
            TIMES.format(title=title, unit=unit, about=_own_work(plain), table=time_table(plain))
        )
    if any(e.text in RIVALS for e in found):
        parts.append(BESIDE.format(title=title, table=rival_table(found)))
    lines = growth_table(found)
    parts += [GROWTH.format(title=title, table=lines)] if lines else []
    lines = kernel_table(found)
    return parts + ([KERNELS.format(title=title, table=lines)] if lines else [])


def usual(found: Iterable[Entry]) -> list[Entry]:
    """Return our rows with one process and one micro-batch, each of them once.

    Of the family of sizes, only the usual ones are included.
    """
    chosen: dict[tuple[str, str], Entry] = {}
    for e in found:
        alone = e.cell["processes"] == e.cell["accumulation"] == 1
        if alone and e.text not in RIVALS and e.cell["model"] not in FAMILY:
            chosen.setdefault((e.size, e.text), e)
    return list(chosen.values())


def _own_work(found: Iterable[Entry]) -> str:
    shares = [
        f"{100 * e.cost.own:.0f} % on {e.size}"
        for e in found
        if e.text == "sam" and e.cost.own is not None
    ]
    return "Share of a `sam` update beside its passes: " + ", ".join(shares) + "." if shares else ""


def time_table(found: Sequence[Entry]) -> str:
    """Return the table of methods and models."""
    sizes = list(dict.fromkeys(e.size for e in sorted(found, key=lambda e: e.cell["model"])))
    of = {(e.size, e.text): e for e in found}
    rows = []
    for text in TARGETS:
        own = [of.get((size, text)) for size in sizes]
        predicted = next((e.row["predicted"]["time"] for e in own if e is not None), None)
        if predicted is not None:
            cells = ["" if e is None else _spread(e.cost) for e in own]
            rows.append([f"`{text}`", f"{predicted:.2f}", *cells])
    return markdown(["method", "predicted", *sizes], rows)


def usual_cost(cost: Cost) -> tuple[float, float, float]:
    """Return the median and the quartiles that the page quotes: on a CPU of CPU seconds."""
    if cost.cpu is None or cost.cpu_low is None or cost.cpu_high is None:
        return cost.ratio, cost.low, cost.high
    return cost.cpu, cost.cpu_low, cost.cpu_high


def _spread(cost: Cost) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*usual_cost(cost))


def rival_table(found: Sequence[Entry]) -> str:
    """Return the table of our methods beside their rivals, both from the same cell."""
    rows = []
    for e in found:
        if e.text not in RIVALS:
            continue
        ours = next(o for o in found if o.result is e.result and o.text == RIVALS[e.text].beside)
        rows.append([
            e.size,
            f"`{ours.text}`",
            f"`{e.text}`",
            _spread(ours.cost),
            _spread(e.cost),
            slower(ours.cost, e.cost),
            f"{ours.extra:.2f} / {e.extra:.2f}",
        ])
    head = ["model", "ours", "rival", "time, ours", "time, rival", "slower?", "memory (P)"]
    return markdown(head, rows)


def slower(ours: Cost, rival: Cost) -> str:
    """Return whether our method takes longer: "no", "within noise" or "**yes**"."""
    (median, low, _), (theirs, _, high) = usual_cost(ours), usual_cost(rival)
    if median <= theirs:
        return "no"
    return "within noise" if low <= high else "**yes**"


def growth_table(found: Iterable[Entry]) -> str:
    """Return the lines of `sam` over parameters, accumulation and processes; nothing if none."""
    chosen: dict[str, Entry] = {}
    for e in found:
        if e.text == "sam" and e.cell["model"].startswith("bert-"):
            chosen.setdefault(_line(e), e)
    rows = [
        [
            line,
            f"{e.result['parameters'] / 1e6:.1f} M",
            _spread(e.cost),
            "" if e.cost.own is None else f"{100 * e.cost.own:.0f} %",
            f"{(e.cost.extra or 0) / MB:.0f}",
            f"{e.extra:.2f}",
        ]
        for line, e in sorted(chosen.items(), key=lambda item: _order(item[1]))
    ]
    head = ["model", "parameters", "time", "beside the passes", "memory (MB)", "(P)"]
    return markdown(head, rows) if rows else ""


def kernel_table(found: Iterable[Entry]) -> str:
    """Return the table of launches, of `none` and of each method; nothing where none is counted."""
    rows: dict[tuple[str, str], list[str]] = {}
    for e in found:
        if e.cell["model"] not in FAMILY or "sam" != e.cell["method"]:
            for row in e.result["rows"]:
                if row.get("launches"):
                    most = [max(n) for n in zip(*row["launches"][1:], strict=True)]
                    rows[_line(e), row["text"]] = [_line(e), f"`{row['text']}`", *map(str, most)]
    return (
        markdown(["model", "method", "kernels", "beside the passes"], rows.values()) if rows else ""
    )


def _line(e: Entry) -> str:
    words = [e.size]
    for name in ("accumulation", "processes"):
        if e.cell[name] > 1:
            words.append(f"{name} {e.cell[name]}")
    return ", ".join(words)


def _order(e: Entry) -> tuple[int, ...]:
    cell = e.cell
    return cell["processes"], cell["accumulation"], e.result["parameters"], cell["batch_size"]


def memory_section(results: Sequence[Result]) -> str:
    """Return the section about memory on GLUE, from what `benchmarks.methods --no-time` wrote."""
    one = results[0]
    return GLUE_MEMORY.format(
        **one["settings"] | {"updates": len(one["rows"][0]["memory"]["peaks"])},
        title=one["model"],
        precision="bfloat16 autocast, " if one["settings"]["bf16"] else "",
        p=one["parameter_bytes"] / MB,
        counted=COUNTED[one["device"]],
        table=memory_table(results),
        commands="\n".join(result["command"] for result in results),
    )


def memory_table(results: Sequence[Result]) -> str:
    """Return the table of tasks and methods."""
    texts = dict.fromkeys(row["text"] for result in results for row in result["rows"])
    rows = [[f"`{text}`", *(_held(result, text) for result in results)] for text in texts]
    return markdown(["method", *(result["task"].upper() for result in results)], rows)


def _held(result: Result, text: str) -> str:
    peaks = {row["text"]: max(row["memory"]["peaks"]) for row in result["rows"]}
    if text not in peaks:
        return ""
    whole, extra = result["model_bytes"] + peaks[text], peaks[text] - peaks["none"]
    more = f" ({extra / MB:+.0f}, {extra / result['parameter_bytes']:.2f} P)" * (text != "none")
    return f"{whole / MB:.0f}{more}"
