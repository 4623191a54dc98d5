# SPDX-License-Identifier: Apache-2.0
"""What is tried, and in which order: a method's radii first, then the options that it names."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from ..compare.rows import NONE, Row, parse_rows
from ..methods import METHODS
from ..parts.radius import RhoSchedule
from ..texts import form_of

RADII = ("0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.2")
"""A grid of equal ratios, from the smallest radius that is known to help to the largest."""


@dataclass(frozen=True)
class Space:
    """The candidates of a search.

    Attributes:
        rows: `none`, then `first` candidates that keep every option at its default, then all
            others; both groups in a random order.
        first: how many candidates differ in method and radius alone.
    """

    rows: Sequence[Row]
    first: int

    def after(self, tried: Collection[str], best: Row | None) -> Row:
        """Return what to try next.

        That is every method and radius at the default options, and after them whatever differs
        from the best so far in the fewest arguments.

        Args:
            tried: texts of the candidates that were begun, not all of them.
            best: the best of them, None if nothing is known of them.
        """
        at_defaults = self.rows[1 : 1 + self.first]
        for row in at_defaults:
            if row.text not in tried:
                return row
        left = [row for row in self.rows[1:] if row.text not in tried]
        return min(left, key=lambda row: _differences(row, best or row))


def _differences(a: Row, b: Row) -> int:
    """Return in how many arguments two candidates differ."""
    one, other = ({"sam": row.method, **row.sam, **row.options} for row in (a, b))
    return sum(one.get(name) != other.get(name) for name in {*one, *other})


def candidates(methods: str, seed: int = 0) -> Space:
    """Return what is tried.

    Args:
        methods: as `hf-sam compare` takes them; an option that is given there stays as it is.
        seed: of the order.

    Raises:
        ValueError: an unknown method or option, or one that is not a method's.
    """
    heads = [word.strip().partition(":")[0] for word in methods.split(",")]
    rows = parse_rows(methods if NONE in heads else f"{NONE},{methods}")
    for row in rows:
        if row.others or (row.method == NONE and not row.plain):
            name = next(iter(row.others), "ema")
            raise ValueError(
                f"--methods: {row.text}: {name} is no option of the method, and would change "
                "what it is compared with: give it after --, for all of them"
            )
    plain, *others = sorted(rows, key=lambda row: row.text != NONE)
    if not others:
        raise ValueError(f"--methods {methods}: name a method besides {NONE}")
    first = list(dict.fromkeys(text for row in others for text in _with_radii(row)))
    more = [text for row in others for text in _with_options(row)]
    rest = [text for text in dict.fromkeys(more) if text not in first]
    order = random.Random(seed)
    order.shuffle(first)
    order.shuffle(rest)
    # Parsed again, so that what a method refuses is found before anything runs.
    return Space([plain, *parse_rows(",".join([NONE, *first, *rest]))[1:]], len(first))


def _with_radii(row: Row) -> list[str]:
    """Return the row with every radius, if it leaves that open, as `--methods` takes it."""
    return [_joined(row.text, words) for words in itertools.product(*_axes(row, radius=True))]


def _with_options(row: Row) -> list[str]:
    """Return the row with every combination of radius and options that the method accepts.

    An option's default is left unsaid, so that the same candidate has one name.
    """
    axes = [*_axes(row, radius=True), *_axes(row, radius=False)]
    texts = [_joined(row.text, words) for words in itertools.product(*axes)]
    return [text for text in texts if _accepted(text)]


def _axes(row: Row, radius: bool) -> list[list[str]]:
    """Return the values of what the row leaves open: of its radius, or of its other options."""
    found = []
    for option in fields(METHODS[row.method]):
        given = f"sam_{option.name}" in row.sam or option.name in row.options
        values = () if given or (option.name == "rho") != radius else grid(option)
        if values:
            usual = None if radius else str(_default(option))
            found.append(["" if v == usual else f"{option.name}={v}" for v in values])
    return found


def _joined(text: str, words: Sequence[str]) -> str:
    added = ",".join(word for word in words if word)
    return text + ("," if ":" in text else ":") + added if added else text


def _accepted(text: str) -> bool:
    """Return whether the method can be built: an option that was given may rule out others."""
    try:
        parse_rows(f"{NONE},{text}")
    except ValueError:
        return False
    return True


def grid(option: Field[Any]) -> Sequence[str]:
    """Return the values of a method's field that are tried; nothing for most options.

    They are what the field's metadata name as `grid`. A radius without them is tried at `RADII`, in
    the form of its default, such as `lr:0.01`.
    """
    named = option.metadata.get("grid")
    if named is not None or option.name != "rho":
        return tuple(map(str, named or ()))
    default = _default(option)
    if isinstance(default, RhoSchedule):
        name = form_of(type(default)).partition(":")[0]
        return tuple(f"{name}:{radius}" for radius in RADII)
    return RADII


def _default(option: Field[Any]) -> Any:
    if option.default is MISSING and option.default_factory is not MISSING:
        return option.default_factory()
    return option.default
