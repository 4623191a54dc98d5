# SPDX-License-Identifier: Apache-2.0
"""Pictures of training runs and of the loss around solutions; loads matplotlib when it draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Panel:
    """One picture of several methods.

    Attributes:
        title: what is shown, above it.
        x_label: the horizontal axis, with its unit.
        y_label: the vertical axis, with its unit.
        x: the points, K of them.
        lines: method -> its runs (one for each seed), each of K values.
        mark: a place on the horizontal axis to point out, e.g. 0 for the solution.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[Sequence[float]]]
    mark: float | None = None


def draw(panels: Sequence[Panel], path: str | Path, title: str = "", columns: int = 2) -> Path:
    """Draw the panels into a PNG: each method's mean as a line, its range over seeds as a band.

    Args:
        panels: in reading order.
        path: the file; its folder is made.
        title: above all panels.
        columns: panels in a row.

    Raises:
        ValueError: no panel, or a line that has not as many values as its panel has points.
        ImportError: matplotlib is not installed.
    """
    if not panels:
        raise ValueError("panels is empty: give at least one Panel to draw")
    for panel in panels:
        _check(panel)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'hf-sam[plot]'") from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    # a Figure of its own: no display, no global state
    figure = Figure(figsize=(5.2 * columns, 3.7 * rows + 0.6), dpi=140, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    colours = _colours(panels)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, colours)
    for axis in list(figure.axes)[len(panels) :]:
        axis.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_panel(axis: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    for method, runs in panel.lines.items():
        points = list(zip(*runs, strict=True))
        mean = [sum(values) / len(values) for values in points]
        axis.plot(panel.x, mean, color=colours[method], linewidth=2, label=method)
        if len(runs) > 1:
            low, high = [min(values) for values in points], [max(values) for values in points]
            axis.fill_between(panel.x, low, high, color=colours[method], alpha=0.18, linewidth=0)
    if panel.mark is not None:
        axis.axvline(panel.mark, color="0.6", linewidth=0.8, linestyle=":")
    axis.set_title(panel.title, fontsize=11)
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def _colours(panels: Iterable[Panel]) -> dict[str, str]:
    """One colour for each method, the same in all panels."""
    methods = dict.fromkeys(method for panel in panels for method in panel.lines)
    return {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}


def _check(panel: Panel) -> None:
    for method, runs in panel.lines.items():
        for run in runs:
            if len(run) != len(panel.x):
                raise ValueError(
                    f"panel {panel.title!r}: a run of {method!r} has {len(run)} values, "
                    f"but x has {len(panel.x)} points; give one value for each point"
                )
