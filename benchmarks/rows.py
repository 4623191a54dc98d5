# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of costs: methods with options, and what each should cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from hf_sam import METHODS, Method
from hf_sam.arguments import by_name
from hf_sam.methods import asks
from hf_sam.methods.rehearsal import DECAY
from hf_sam.parts.base import nearest
from hf_sam.texts import parse_options


@dataclass(frozen=True)
class Row:
    """A method with options.

    Attributes:
        text: `KEY` or `KEY:OPTION=VALUE,...`, as it is written on the command line.
        key: in `METHODS`.
        options: beside the radius.
    """

    text: str
    key: str
    options: dict[str, Any]

    @property
    def method(self) -> Method:
        """A new method object."""
        return by_name(self.key, None, self.options)

    @property
    def renews(self) -> bool:
        """Whether it renews a mask now and then, in updates that are counted apart."""
        return any(f.name == "update_interval" for f in fields(METHODS[self.key]))


def parse_rows(text: str) -> list[Row]:
    """Return the rows of a text such as `none,sam,ss_sam:schedule=constant,p_start=0.5,looksam`.

    Raises:
        ValueError: an unknown method or option, a row twice, or `none` is missing.
    """
    words: list[str] = []
    for word in filter(None, text.split(",")):
        if words and "=" in word and ":" not in word and ":" in words[-1]:
            words[-1] += "," + word
        else:
            words.append(word)
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None:
        raise ValueError(f"--methods names {twice!r} twice: give every row once")
    if "none" not in words:
        raise ValueError(f"--methods {text}: add `none`, which all others are compared with")
    return [_parse_row(word) for word in words]


def _parse_row(text: str) -> Row:
    key, _, options = text.partition(":")
    if key not in METHODS:
        raise ValueError(
            f"--methods: {key!r} is not a method; choose from {', '.join(METHODS)}"
            f"{nearest(key, METHODS)}"
        )
    row = Row(text, key, parse_options(options))
    _ = row.method  # refuses unknown options
    return row


@dataclass(frozen=True)
class Work:
    """What an update computes, in whole batches, outside the renewal of masks and on average.

    Attributes:
        forwards: examples forwarded / examples of an update.
        backwards: examples that were gone backward through / examples of an update.
        time: of a model whose backward takes twice its forward, relative to the plain update.
    """

    forwards: float
    backwards: float
    time: float


def predicted(method: Method, batch: int) -> Work:
    """Return the work that the method's definition implies for updates of `batch` examples."""
    special: dict[str, Callable[[Any], float]] = {
        "Plain": lambda m: 1,
        "BAR": lambda m: 1,
        "HeadSAM": lambda m: 1,
        "MomentumSAM": lambda m: 1,
        "PreviousSAM": lambda m: 1,
        "BiLoRA": lambda m: 1,
        "FlatLoRA": lambda m: 1,
        "BilateralSAM": lambda m: 2 + m.ascent_fraction,
        "LookSAM": lambda m: 1 + m.ascent_fraction / m.k,
        "SSSAM": lambda m: 1 + m.ascent_fraction * _mean_probability(m),
        "LateSAM": lambda m: 1 + m.ascent_fraction * (1 - m.start),
        "TailSAM": lambda m: 1 + m.fraction * (DECAY if m.start == "decay" else 1 - m.start),
    }
    name = type(method).__name__
    if name == "ESAM":
        return _esam(method, batch)
    passes = special.get(name, lambda m: 1 + m.ascent_fraction)(method)
    return Work(passes, passes, passes)


def _esam(method: Any, batch: int) -> Work:
    """A first pass with weight gradients for the share beta, a choice, a pass on the chosen."""
    if method.gamma >= 1:
        return Work(2, 2, (2 + method.beta + 3) / 3)
    chosen = math.ceil(method.gamma * batch) / batch
    return Work(2 + chosen, 1 + chosen, (2 + method.beta + 1 + 3 * chosen) / 3)


def _mean_probability(method: Any, points: int = 1000) -> float:
    return statistics.fmean(method.when.probability(i / points) for i in range(points))


LIMITS = {
    "ssam_f": 2.2,
    "ssam_d": 2.2,
    "esam": 1.75,
    "looksam": 1.3,
    "bilateral_sam": 3.1,
    "late_sam": 1.35,
    "tail_sam": 1.09,
    "momentum_sam": 1.04,
    "previous_sam": 1.04,
    "bar": 1.06,
    "bi_lora": 1.12,
    "flat_lora": 1.22,
}
"""Seconds per update relative to `none` that a method should not exceed, where that is not 5 %
above what its definition implies."""

ROWS = {
    "ss_sam": "ss_sam:schedule=constant,p_start=0.5",
    "tail_sam": "tail_sam:start=0.7",
}
"""Rows of methods that are measured with other options than their defaults."""

TARGETS: dict[str, float | None] = {
    "none": None,
    **{
        ROWS.get(key, key): LIMITS.get(key, round(1.05 * predicted(kind(), 16).time, 2))
        for key, kind in METHODS.items()
        if key != "none"
    },
    "sam:ascent_fraction=0.25": 1.45,
}
"""Row -> seconds per update relative to `none` that it should not exceed."""

FOR_ADAPTERS = [key for key, kind in METHODS.items() if asks(kind()).layers]
"""Rows that need a model with LoRA adapters."""


def usual(adapters: bool) -> list[str]:
    """Return the rows to measure on a model with or without LoRA adapters."""
    if adapters:
        return ["none", "sam", *FOR_ADAPTERS]
    return [row for row in TARGETS if row not in FOR_ADAPTERS]
