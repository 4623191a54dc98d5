# SPDX-License-Identifier: Apache-2.0
"""Gain against time: what is drawn, what nothing beats, and that it fits a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_sam.compare.tradeoff import WIDTH, Point, draw, front, points

pytest.importorskip("matplotlib")


def line(method: str, time: float | None, *values: float) -> dict[str, Any]:
    found = {"values": values, "mean": sum(values) / len(values), "low": min(values)}
    return {"method": method, "time": time, "difference": found | {"high": max(values)}}


def result(*lines: dict[str, Any]) -> dict[str, Any]:
    none = {"method": "none", "time": 1.0, "difference": None}
    return {"settings": [{"lines": [none, one]} for one in lines]}


def test_points_of_all_settings_at_their_own_time_or_the_methods() -> None:
    """What `none` is compared with itself is no point."""
    found = [*points(result(line("sam:rho=0.01", None, 1.0, 3.0), line("bar", 1.1, 2.0)), TIMES)]
    assert found == [
        Point(2.0, 2.0, "sam:rho=0.01", 1.0, 3.0, 2),
        Point(1.1, 2.0, "bar", 2.0, 2.0, 1),
    ]


TIMES = {"sam": 2.0, "bar": 0.9}


@pytest.mark.parametrize(
    ("at", "best"),
    [
        ([(2.0, 1.0), (1.5, 0.5), (1.5, -1.0), (1.8, 0.4)], [(1.0, 0.0), (1.5, 0.5), (2.0, 1.0)]),
        ([(0.9, 0.1), (2.0, 0.1)], [(0.9, 0.1)]),
        ([(2.0, -3.0)], [(1.0, 0.0)]),
        ([(0.9, -1.0)], [(0.9, -1.0), (1.0, 0.0)]),
        ([(1.5, 0.2), (1.5, 0.7)], [(1.0, 0.0), (1.5, 0.7)]),
    ],
)
def test_what_nothing_beats(at: list[tuple[float, float]], best: list[tuple[float, float]]) -> None:
    assert front([Point(*one, "m", 0.0, 0.0, 1) for one in at]) == best


def test_the_picture(tmp_path: Path) -> None:
    """A panel for each study, one legend, no point outside, methods of one time side by side."""
    own = [*points(result(line("sam:rho=0.01", 2.0, 1.0, 3.0), line("sam:rho=0.05", 2.0, 2.0)), {})]
    figure = draw({"one task": own, "another, " * 9: own[:1]})
    assert figure.get_size_inches()[0] == pytest.approx(WIDTH)
    first, second = figure.axes
    assert "\n" in second.get_title(loc="left")
    marks = [bar.lines[0] for bar in first.containers]
    assert [mark.get_ydata()[0] for mark in marks] == [2.0, 2.0]
    assert marks[0].get_xdata()[0] < marks[1].get_xdata()[0] < first.get_xlim()[1]
    assert len({(m.get_color(), m.get_marker()) for m in marks}) == 2
    (legend,) = figure.legends
    wanted = ["none", "sam:rho=0.01", "sam:rho=0.05"]
    assert [text.get_text() for text in legend.get_texts()] == wanted
    figure.savefig(tmp_path / "one.png")
