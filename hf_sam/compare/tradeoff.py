# SPDX-License-Identifier: Apache-2.0
"""Gain against time over several comparisons: one picture, as wide as a paper's column."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .pictures import STYLE, Look, shorter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.5 / 2.54
"""Inches of the narrowest column of a paper."""


class Point(NamedTuple):
    """What a method gained over `none` with the same seeds and schedule, and at what price."""

    time: float
    gain: float
    method: str
    low: float
    high: float
    seeds: int


def points(result: Mapping[str, Any], times: Mapping[str, float]) -> Iterator[Point]:
    """Yield the methods of a study; `times` of methods stand in for what it did not measure."""
    for line in (line for setting in result["settings"] for line in setting["lines"]):
        if gains := line["difference"]:
            time = line["time"] or times[line["method"].partition(":")[0]]
            ends = (gains["low"], gains["high"], len(gains["values"]))
            yield Point(time, gains["mean"], line["method"], *ends)


def front(found: Sequence[Point]) -> list[tuple[float, float]]:
    """Return time and gain of all, and of `none` at (1, 0), that nothing beats in both."""
    best: list[tuple[float, float]] = []
    for time, gain in sorted([(1.0, 0.0), *(p[:2] for p in found)], key=lambda at: (at[0], -at[1])):
        if not best or gain > best[-1][1]:
            best.append((time, gain))
    return best


def draw(found: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw a panel for each study: the mean gain and its interval over the time of an update."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return _draw(found)


def _draw(found: Mapping[str, Sequence[Point]]) -> Figure:
    from matplotlib.figure import Figure

    look = Look(list(dict.fromkeys(p.method for one in found.values() for p in one)))
    figure = Figure(figsize=(WIDTH, 1.1 + 1.35 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    shown: dict[str, Any] = {}
    for axis, (title, own) in zip(axes, found.items(), strict=True):
        stairs = front(own)
        axis.step(
            *zip(*stairs, (9.0, stairs[-1][1]), strict=True), "0.6", where="post", lw=0.9, zorder=1
        )
        shown["none"] = axis.plot(1, 0, "+", color="black", markersize=6)[0]
        for i, p in enumerate(own):
            x = p.time + 0.04 * sum(abs(p.time - other.time) < 0.03 for other in own[:i])
            reach, style = [[p.gain - p.low], [p.high - p.gain]], look.of(p.method, mark=True)
            shown[p.method] = axis.errorbar(x, p.gain, reach, linestyle="none", **style)
        axis.set_title(textwrap.fill(title, 48), loc="left")
        axis.set_ylabel("gain, points")
    axes[-1].set_xlim(0.9, max(p.time for own in found.values() for p in own) + 0.2)
    axes[-1].set_xlabel("time of an update, relative to none")
    names = [shorter(method) for method in shown]
    figure.legend(shown.values(), names, loc="outside lower center", ncols=2, frameon=False)
    return figure
