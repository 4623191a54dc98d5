# SPDX-License-Identifier: Apache-2.0
"""Gain against time in docs/choosing.md: the picture docs/pareto.png, and its numbers.

python -m benchmarks.pareto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks import machine, studies
from benchmarks.criterion import prices
from benchmarks.markdown import markdown
from benchmarks.radii import PAGE
from hf_sam.compare.pictures import DOTS
from hf_sam.compare.tradeoff import Point, draw, points

PICTURE = PAGE.with_name("pareto.png")
BEGIN = "<!-- pareto: python -m benchmarks.pareto writes what is below -->\n"
END = "<!-- end of pareto -->\n"
HEAD = ("task", "method", "time", "gain over `none`", "95 % interval", "seeds")


def measured() -> dict[str, list[Point]]:
    """Return the methods of every study of the evidence, under its title."""
    found = {}
    for path in sorted(machine.RESULTS.glob("evidence-*.json")):
        plan = studies.plan(path.stem)
        name = "methods-minilm-mrpc" + "-lora" * ("--use_peft" in plan["command"])
        times = prices(machine.read(machine.RESULTS / f"{name}.json"))
        if own := [*points(machine.read(path), times)]:
            found[plan["title"]] = own
    return found


def table(found: Mapping[str, Sequence[Point]]) -> str:
    """Return the numbers of the picture."""
    rows = []
    for title, own in found.items():
        for i, p in enumerate(own):
            interval = f"{p.low:+.1f} to {p.high:+.1f}"
            cells = [f"`{p.method}`", f"{p.time:.2f}", f"{p.gain:+.1f}", interval, str(p.seeds)]
            rows.append(["" if i else title, *cells])
    return markdown(HEAD, rows)


def main() -> None:
    """Draw the picture, and write its numbers into the page."""
    found = measured()
    draw(found).savefig(PICTURE, dpi=DOTS)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n{table(found)}\n\n{END}{rest.partition(END)[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
