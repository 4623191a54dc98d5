# SPDX-License-Identifier: Apache-2.0
"""The pictures of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.costs import costs

INK, SOFT, LINE, MISS = "#1f2933", "#7b8794", "#2563a8", "#c2410c"


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
    axes.set_title(_title(result), loc="left", fontsize=11)
    for label, style in {
        "measured (bar: quartiles)": {"marker": "o", "color": LINE, "ms": 7},
        "measured, above its target": {"marker": "o", "color": MISS, "ms": 7},
        "predicted from the passes": {"marker": "D", "mfc": "white", "mec": SOFT, "ms": 5},
        "target": {"marker": "|", "color": INK, "ms": 11, "mew": 1.6},
    }.items():
        axes.plot([], [], ls="", label=label, **style)  # type: ignore[arg-type]
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    _finish(figure, axes, path)


def draw_memory(result: dict[str, Any], path: Path) -> None:
    """Draw the extra memory of every row of a result of `benchmarks.methods`, the least on top."""
    found, size = costs(result), result["parameter_bytes"]
    extra = {text: (cost.extra or 0) / size for text, cost in found.items() if text != "none"}
    rows = sorted(extra, key=lambda text: -extra[text])
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(rows) + 1.3), layout="constrained")
    axes.barh(range(len(rows)), [extra[text] for text in rows], height=0.62, color=LINE)
    for y, text in enumerate(rows):
        axes.annotate(f" {extra[text]:.2f}", (max(extra[text], 0.0), y), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [text.replace(":", "\n", 1) for text in rows], fontsize=9)
    axes.set_xlabel("peak memory beyond none, in copies of the trainable parameters (P)")
    axes.set_title(_title(result), loc="left", fontsize=11)
    _finish(figure, axes, path)


def _title(result: dict[str, Any]) -> str:
    settings = result["settings"]
    return (
        f"{result['model']} on {result['task'].upper()}, "
        f"{settings['batch_size']} x {settings['length']} tokens"
    )


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(axis="x", color="#e4e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=130)
    plt.close(figure)
