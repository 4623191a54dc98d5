# SPDX-License-Identifier: Apache-2.0
"""Pictures of a comparison, as wide as a paper's column; loads matplotlib when it draws.

Colours are told apart with every kind of colour vision, and each method also has its own line and
mark, so that nothing depends on colour alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sharpness.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# lengths without a common factor with that of COLOURS: no pair comes twice soon
LINES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDTH = 3.5
"""Inches: a column of a two-column paper."""
DOTS = 300
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
}


class Look:
    """The colour, line and mark of each method, the same in all pictures."""

    def __init__(self, methods: Sequence[str]) -> None:
        self._places = {method: i for i, method in enumerate(methods)}

    def of(self, method: str, mark: bool = False) -> dict[str, Any]:
        """Return what matplotlib is told of a method."""
        i = self._places[method]
        found: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)]}
        if mark:
            return found | {"marker": MARKS[i % len(MARKS)]}
        return found | {"linestyle": LINES[i % len(LINES)]}


def draw_all(results: Mapping[str, Any], folder: Path) -> list[dict[str, dict[str, str]]]:
    """Draw the pictures of every setting, and return name -> file and caption for each setting."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return [
            _draw_setting(results, setting, folder, f"setting{i}-" if i else "")
            for i, setting in enumerate(results["settings"])
        ]


def _draw_setting(
    results: Mapping[str, Any], setting: Mapping[str, Any], folder: Path, prefix: str
) -> dict[str, dict[str, str]]:
    look = Look([line["method"] for line in setting["lines"]])
    found = {}
    for name, (draw, caption) in PICTURES.items():
        figure = draw(results, setting, look)
        if figure is not None:
            path = folder / f"{prefix}{name}.png"
            figure.savefig(path, dpi=DOTS)
            found[name] = {"file": path.name, "caption": caption}
    return found


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    # a Figure of its own: no display, no global state
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def differences(
    results: Mapping[str, Any], setting: Mapping[str, Any], look: Look
) -> Figure | None:
    """Draw each method's differences to `none`: a dot for a seed, the mean and its interval."""
    lines = [line for line in setting["lines"] if line["difference"]]
    if not lines:
        return None
    figure, axis = _figure(0.75 + 0.3 * len(lines))
    for row, line in enumerate(reversed(lines)):
        found, style = line["difference"], look.of(line["method"], mark=True)
        several = len(found["values"]) > 1
        if several:
            axis.plot([found["low"], found["high"]], [row, row], color=style["color"], linewidth=2)
            axis.plot(found["mean"], row, **style, markersize=6, markeredgecolor="white")
        seeds = [row + (0.22 if several else 0)] * len(found["values"])
        axis.plot(found["values"], seeds, "o", color=style["color"], markersize=2.5, alpha=0.8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(lines)), [shorter(line["method"]) for line in reversed(lines)])
    axis.set_ylim(-0.5, len(lines) - 0.3)
    axis.grid(axis="y", visible=False)
    good = "left" if results["less_is_better"] else "right"
    # of the figure: long names leave too narrow an axis
    title = f"{results['title']}: difference to none\n({good} of the line is better)"
    figure.supxlabel(title, fontsize=STYLE["axes.labelsize"])
    return figure


def training(results: Mapping[str, Any], setting: Mapping[str, Any], look: Look) -> Figure | None:
    """Draw the training loss."""
    return _curves(setting, look, "loss", "training loss")


def scores(results: Mapping[str, Any], setting: Mapping[str, Any], look: Look) -> Figure | None:
    """Draw the compared metric at every evaluation."""
    return _curves(setting, look, results["metric"], results["title"], results["factor"])


def sharpness(results: Mapping[str, Any], setting: Mapping[str, Any], look: Look) -> Figure | None:
    """Draw the sharpness on the same examples for all methods."""
    return _curves(setting, look, "compare/sharpness", "sharpness")


def own_sharpness(
    results: Mapping[str, Any], setting: Mapping[str, Any], look: Look
) -> Figure | None:
    """Draw the sharpness that each SAM method logged."""
    return _curves(setting, look, "sam/sharpness", "sharpness (own radius)")


def _curves(
    setting: Mapping[str, Any], look: Look, name: str, title: str, factor: float = 1
) -> Figure | None:
    """Draw a value over the epochs: each method's mean, and the range over its seeds."""
    figure, axis = _figure(2.7)
    for line in setting["lines"]:
        method = line["method"]
        runs = [run["curves"][name] for run in setting["runs"] if run["method"] == method]
        x, values = shared(runs)
        if len(x) < 2:
            continue
        style = look.of(method)
        mean = [factor * statistics.fmean(column) for column in values]
        axis.plot(x, mean, **style, label=shorter(method))
        if len(runs) > 1:
            low, high = ([factor * f(column) for column in values] for f in (min, max))
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if not axis.lines:
        return None
    axis.set_xlabel("epoch")
    axis.set_ylabel(title)
    _legend(figure)
    return figure


def shared(runs: Sequence[Sequence[Sequence[float]]]) -> tuple[list[float], list[list[float]]]:
    """Return the epochs that all runs have, and the values of all runs at each."""
    tables = [{round(x, 6): value for x, value in run} for run in runs]
    x = [epoch for epoch in tables[0] if all(epoch in table for table in tables)]
    return x, [[table[epoch] for table in tables] for epoch in x]


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max(map(len, labels))
    columns = 1 if longest > 30 else 2 if longest > 14 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def pareto(results: Mapping[str, Any], setting: Mapping[str, Any], look: Look) -> Figure | None:
    """Draw score against time, and join what nothing beats in both."""
    lines = [line for line in setting["lines"] if line["time"] is not None]
    if len(lines) < 2:
        return None
    figure, axis = _figure(3.0)
    best = sorted(
        (line["time"], line["mean"]) for line in lines if line["method"] in setting["front"]
    )
    axis.step(*zip(*best, strict=True), where="post", color="0.55", linewidth=0.9, zorder=1)
    for line in lines:
        style = look.of(line["method"], mark=True)
        axis.errorbar(
            line["time"],
            line["mean"],
            yerr=line["deviation"] or None,
            **style,
            markersize=5,
            elinewidth=0.8,
            linestyle="none",
            label=shorter(line["method"]),
        )
    axis.set_xlabel("time per update, relative to none")
    axis.set_ylabel(results["title"])
    _legend(figure)
    return figure


def shorter(method: str) -> str:
    """Return a method's name with a line break where it would not fit a column."""
    if len(method) <= 26:
        return method
    places = [i for i, letter in enumerate(method) if letter == ","] or [method.find(":")]
    middle = min(
        (i for i in places if i >= 0), key=lambda i: abs(i - len(method) / 2), default=None
    )
    return method if middle is None else f"{method[: middle + 1]}\n{method[middle + 1 :]}"


Draw = Callable[[Mapping[str, Any], Mapping[str, Any], Look], "Figure | None"]
PICTURES: dict[str, tuple[Draw, str]] = {
    "difference": (
        differences,
        "Difference to none with the same seed. Small dots: a seed each. Mark and bar: the mean "
        "and its 95 % bootstrap interval, which is too narrow for a few seeds.",
    ),
    "pareto": (
        pareto,
        "Score of the last model against the time of an update: mean and standard deviation over "
        "the seeds. The grey line joins what no other method beats in both.",
    ),
    "training": (training, "Training loss: mean and range over the seeds."),
    "scores": (scores, "The compared score at every evaluation: mean and range over the seeds."),
    "sharpness": (
        sharpness,
        "Sharpness at every evaluation, loss(w + 0.05 g/|g|) - loss(w) in eval mode on the same "
        "training examples for all methods: mean and range over the seeds.",
    ),
    "own-sharpness": (
        own_sharpness,
        "The sharpness that the methods logged, loss(w + eps) - loss(w) in training mode: each at "
        "its own radius, so methods with different radii cannot be compared here. none has none.",
    ),
}
