# SPDX-License-Identifier: Apache-2.0
"""What is tried: every combination of a method's radius and of the options that it names."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ..compare.rows import NONE, Row, parse_rows
from ..methods import METHODS
from ..parts.radius import RhoSchedule
from ..texts import form_of

RADII = ("0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.2")
"""A grid of equal ratios, from the smallest radius that is known to help to the largest."""


def candidates(methods: str, seed: int = 0) -> list[Row]:
    """Return what is tried, `none` first and the others in a random order.

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
    texts = [text for row in others for text in _combinations(row)]
    random.Random(seed).shuffle(texts)
    if not texts:
        raise ValueError(f"--methods {methods}: name a method besides {NONE}")
    # Parsed again, so that a combination that a method refuses is found before anything runs.
    return [plain, *parse_rows(",".join([NONE, *dict.fromkeys(texts)]))[1:]]


def _combinations(row: Row) -> list[str]:
    """Return the row with every combination of what it leaves open, as `--methods` takes it."""
    axes = [
        [f"{f.name}={value}" for value in values]
        for f in fields(METHODS[row.method])
        if (values := grid(f)) and f"sam_{f.name}" not in row.sam and f.name not in row.options
    ]
    link = "," if ":" in row.text else ":"
    return [
        row.text + (link + ",".join(chosen) if chosen else "")
        for chosen in itertools.product(*axes)
    ]


def grid(option: Field[Any]) -> Sequence[str]:
    """Return the values of a method's field that are tried; nothing for most options.

    They are what the field's metadata name as `grid`. A radius without them is tried at `RADII`, in
    the form of its default, such as `lr:0.01`.
    """
    named = option.metadata.get("grid")
    if named is not None or option.name != "rho":
        return tuple(map(str, named or ()))
    default = option.default
    if default is MISSING and option.default_factory is not MISSING:
        default = option.default_factory()
    if isinstance(default, RhoSchedule):
        name = form_of(type(default)).partition(":")[0]
        return tuple(f"{name}:{radius}" for radius in RADII)
    return RADII
