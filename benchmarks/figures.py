# SPDX-License-Identifier: Apache-2.0
"""The pictures of the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.costs import costs
from benchmarks.loops import RIVALS
from benchmarks.pages import Entry, Results, entries, usual, usual_cost
from benchmarks.rows import TARGETS

INK, SOFT, LINE, MISS = "#1f2933", "#7b8794", "#2563a8", "#c2410c"
COLOURS = ("#1f2933", "#2563a8", "#c2410c", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f")


def draw_costs(result: dict[str, Any], path: Path) -> None:
    """Draw the time of every row: measured with quartiles, predicted, and the target."""
    found = costs(result)
    rows = sorted(
        (r for r in result["rows"] if r["text"] != "none"), key=lambda r: found[r["text"]].ratio
    )
    figure, axes = plt.subplots(figsize=(8.5, 0.36 * len(rows) + 1.5), layout="constrained")
    for y, row in enumerate(rows):
        cost, target = found[row["text"]], row["target"]
        colour = MISS if target is not None and cost.ratio > target else LINE
        axes.plot([cost.low, cost.high], [y, y], color=colour, lw=5, alpha=0.3)
        axes.plot(cost.ratio, y, "o", color=colour, ms=7)
        axes.plot(row["predicted"]["time"], y, "D", mfc="white", mec=SOFT, ms=5, zorder=1)
        if target is not None:
            axes.plot([target, target], [y - 0.33, y + 0.33], color=INK, lw=1.6)
    axes.set_yticks(range(len(rows)), [r["text"].replace(":", "\n", 1) for r in rows], fontsize=9)
    axes.axvline(1.0, color=SOFT, lw=1, ls=":")
    axes.set_xlim(left=min(0.9, axes.get_xlim()[0]))
    axes.set_xlabel("seconds per update relative to none")
    axes.set_title(
        f"{result['model']} on {result['task'].upper()}, "
        f"{result['settings']['batch_size']} x {result['settings']['length']} tokens",
        loc="left",
        fontsize=11,
    )
    for label, style in {
        "measured (bar: quartiles)": {"marker": "o", "color": LINE, "ms": 7},
        "measured, above its target": {"marker": "o", "color": MISS, "ms": 7},
        "predicted from the passes": {"marker": "D", "mfc": "white", "mec": SOFT, "ms": 5},
        "target": {"marker": "|", "color": INK, "ms": 11, "mew": 1.6},
    }.items():
        axes.plot([], [], ls="", label=label, **style)  # type: ignore[arg-type]
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    _finish(figure, axes, path, "x")


def draw_cells(cells: Results, folder: Path) -> None:
    """Draw time.png and memory.png from the cells of `make bench`, if there are any."""
    found = entries(cells)
    if usual(found):
        _draw_times(found, folder / "time.png")
        _draw_memory(found, folder / "memory.png")


def _draw_times(found: Sequence[Entry], path: Path) -> None:
    """Draw the time of every method on every model, and what is predicted."""
    own = usual(found)
    rows = [text for text in reversed(TARGETS) if any(e.text == text for e in own)]
    kinds = list(dict.fromkeys((e.setting, e.size) for e in own))
    figure, axes = plt.subplots(figsize=(8.5, 0.4 * len(rows) + 1.9), layout="constrained")
    for i, kind in enumerate(kinds):
        chosen = [e for e in own if (e.setting, e.size) == kind]
        shift = 0.5 * (i - (len(kinds) - 1) / 2) / max(len(kinds), 1)
        at = [rows.index(e.text) - shift for e in chosen]
        colour, (device, precision) = COLOURS[(i + 1) % len(COLOURS)], kind[0]
        axes.plot(
            [usual_cost(e.cost)[0] for e in chosen],
            at,
            "o",
            color=colour,
            ms=6,
            label=f"{kind[1]}, {device} {precision}",
        )
        for e, y in zip(chosen, at, strict=True):
            axes.plot(usual_cost(e.cost)[1:], [y, y], color=colour, lw=3, alpha=0.3)
    for y, text in enumerate(rows):
        predicted = next(e.row["predicted"]["time"] for e in own if e.text == text)
        axes.plot([predicted, predicted], [y - 0.4, y + 0.4], color=INK, lw=1.4)
    axes.plot([], [], "|", color=INK, ms=11, mew=1.4, label="predicted from the passes")
    axes.set_yticks(range(len(rows)), [text.replace(":", "\n", 1) for text in rows], fontsize=9)
    axes.axvline(1.0, color=SOFT, lw=1, ls=":")
    axes.set_xlim(left=min(0.9, axes.get_xlim()[0]))
    axes.set_xlabel("time per update relative to none (on a CPU: CPU time; bar: quartiles)")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=2, fontsize=9, frameon=False
    )
    _finish(figure, axes, path, "x")


def _draw_memory(found: Sequence[Entry], path: Path) -> None:
    """Draw the extra memory of methods and rivals, on the model with most of them."""
    sizes = [(e.setting, e.size) for e in found if e.cell["processes"] == 1]
    most = max(dict.fromkeys(sizes), key=sizes.count)
    chosen = {e.text: e.extra for e in reversed(found) if (e.setting, e.size) == most}
    (device, precision), size = most
    _draw_bars(chosen, f"{size}, {device} {precision} (red: not ours)", path)


def draw_memory(result: dict[str, Any], path: Path) -> None:
    """Draw the extra memory of every row of a result of `benchmarks.methods`."""
    found = costs(result)
    extra = {
        row["text"]: (found[row["text"]].extra or 0) / result["parameter_bytes"]
        for row in result["rows"]
        if row["text"] != "none"
    }
    settings = result["settings"]
    _draw_bars(
        extra,
        f"{result['model']} on {result['task'].upper()}, "
        f"{settings['batch_size']} x {settings['length']} tokens",
        path,
    )


def _draw_bars(extra: Mapping[str, float], title: str, path: Path) -> None:
    """Draw the extra memory in P of rows, the least on top."""
    rows = sorted(extra, key=lambda text: -extra[text])
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(rows) + 1.3), layout="constrained")
    axes.barh(
        range(len(rows)),
        [extra[text] for text in rows],
        height=0.62,
        color=[MISS if text in RIVALS else LINE for text in rows],
    )
    for y, text in enumerate(rows):
        axes.annotate(f" {extra[text]:.2f}", (max(extra[text], 0.0), y), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [text.replace(":", "\n", 1) for text in rows], fontsize=9)
    axes.set_xlabel("peak memory beyond none, in copies of the trainable parameters (P)")
    axes.set_title(title, loc="left", fontsize=11)
    _finish(figure, axes, path, "x")


def _finish(figure: Any, axes: Any, path: Path, grid: str) -> None:
    axes.grid(axis=grid, color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left" if grid == "y" else "top"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
