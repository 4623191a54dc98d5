# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison, one HTML file with all pictures in it, and the table for a terminal."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .paired import digits, signed
from .pictures import draw_all

if TYPE_CHECKING:
    from rich.table import Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Draw the pictures into a folder and write `report.html`, which needs no other file."""
    from jinja2 import Environment, StrictUndefined

    pictures = draw_all(results, folder)
    for setting in pictures:
        for picture in setting.values():
            data = base64.b64encode((folder / picture["file"]).read_bytes()).decode()
            picture["data"] = f"data:image/png;base64,{data}"
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    jinja.filters |= {
        "score": lambda v: score(v, results),
        "signed": lambda v: signed(v, results["unit"]),
    }
    template = jinja.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = folder / "report.html"
    path.write_text(template.render(**results, pictures=pictures), encoding="utf-8")
    return path


def score(value: float, results: Mapping[str, Any]) -> str:
    """Return a score as text."""
    return f"{value:.{digits(results['unit'])}f}"


def terminal(results: Mapping[str, Any]) -> Iterator[Table | str]:
    """Return a table and a verdict for every setting."""
    for setting in results["settings"]:
        yield _table(results, setting)
        yield f"{setting['verdict']}\n"
    if results["missing"]:
        yield f"Not finished: {'; '.join(results['missing'])}.\n"


def _table(results: Mapping[str, Any], setting: Mapping[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=setting["name"] or None, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    for head in (
        results["title"],
        "difference to none",
        "95 % interval",
        "better",
        "time",
        "memory",
    ):
        table.add_column(head, justify="right")
    for line in setting["lines"]:
        table.add_row(*_cells(results, line))
    return table


def _cells(results: Mapping[str, Any], line: Mapping[str, Any]) -> list[str]:
    several, found, unit = len(line["seeds"]) > 1, line["difference"], results["unit"]
    spread = f" ± {score(line['deviation'], results)}" if several else ""
    cells = [line["method"], score(line["mean"], results) + spread, "", "", ""]
    if found:
        wide = len(found["values"]) > 1
        cells[2] = signed(found["mean"], unit)
        if wide:
            cells[2] += f" ± {score(found['deviation'], results)}"
            cells[3] = f"{signed(found['low'], unit)} to {signed(found['high'], unit)}"
        cells[4] = f"{found['better']} of {len(found['values'])}"
    time, memory = (
        "" if line[name] is None else f"{line[name]:.2f}" for name in ("time", "memory")
    )
    return [*cells, time, memory]
