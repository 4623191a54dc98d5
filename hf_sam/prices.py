# SPDX-License-Identifier: Apache-2.0
"""The table of methods, grouped by their price."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .methods import Method

PRICES = (
    (1.1, "the price of plain training"),
    (1.6, "up to one and a half times the price"),
    (math.inf, "twice the price and more"),
)
"""Upper bounds of the passes per update, and what a method below each of them costs."""
COLUMNS = ("key", "paper", "passes per update", "extra memory (P)", "state", "when to use")


def rows() -> list[tuple[str, ...]]:
    """Return the table of methods, a row of `COLUMNS` each."""
    from .methods import METHODS  # loads torch, which not every command needs

    return [
        (key, kind.paper, kind.passes, kind.memory, "saved" if keeps(kind) else "none", kind.use)
        for key, kind in METHODS.items()
    ]


def passes_of(kind: type[Method]) -> float:
    """Return the mean number of passes that a method's text states."""
    # A number in brackets comes after a formula, and is its value.
    found = re.search(r"\(([\d.]+)\)", kind.passes) or re.search(r"([\d.]+)", kind.passes)
    assert found, kind.passes
    return float(found[1].rstrip("."))


def by_price() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield for each price what it is, and the rows of its methods, the cheapest first."""
    from .methods import METHODS

    cost = {key: passes_of(kind) for key, kind in METHODS.items()}
    below = 0.0
    for limit, name in PRICES:
        group = [row for row in rows() if below < cost[row[0]] <= limit]
        yield name, sorted(group, key=lambda row: cost[row[0]])
        below = limit


def keeps(kind: type[Method]) -> bool:
    """Return whether a method carries anything from update to update."""
    return kind().keeps_state
