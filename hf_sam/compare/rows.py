# SPDX-License-Identifier: Apache-2.0
"""The text of `--methods`: which methods are compared, each with its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ..parts.base import nearest

NONE = "none"
OURS = ("seed", "output_dir", "sam", "sam_track_memory", "load_best_model_at_end")
"""Arguments that the comparison sets itself, or that would spoil it."""
EMA = "ema"
"""The option of a row whose weights are averaged over the updates: `none:ema=0.99`."""
FORM = "write for example none,looksam,sam:rho=0.01,when=after:0.7"


@dataclass
class Row:
    """One method with its options.

    Attributes:
        text: as it was written, such as `sam:rho=0.01`; the name of the row.
        method: key in `METHODS`.
        sam: `sam_*` argument -> value.
        options: what goes into `sam_options`.
        others: other argument -> value; rows in which these differ have a `none` of their own.
        ema: decay of the average of the weights, None for none.
        rival: whether it is the plain Trainer with other arguments that no method has, such as
            NEFTune or fewer epochs: it is compared with `none` as a method is.
    """

    text: str
    method: str
    sam: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    ema: str | None = None
    rival: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is the plain Trainer, perhaps with other arguments."""
        return self.method == NONE and self.ema is None

    @property
    def setting(self) -> dict[str, str]:
        """The arguments that a row has in common with what it is compared with."""
        return {} if self.rival else self.others

    @property
    def arguments(self) -> dict[str, str]:
        """Every argument of the row with its value."""
        found = {"sam": self.method} | self.sam
        if self.options:
            found["sam_options"] = ",".join(f"{k}={v}" for k, v in self.options.items())
        return found | self.others

    @property
    def name(self) -> str:
        """The method with its own options, without the arguments that are not the method's."""
        own = self.options if self.ema is None else self.options | {EMA: self.ema}
        return self.text if self.rival else label(self.method, self.sam, own)


def label(method: str, sam: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return a method and its options as `--methods` takes them."""
    named = {key.removeprefix("sam_"): value for key, value in sam.items()} | dict(options)
    return ":".join([method, ",".join(f"{k}={v}" for k, v in named.items())] if named else [method])


def parse_rows(text: str) -> list[Row]:
    """Return the rows of a text such as `none,looksam,sam:rho=0.01,when=after:0.7`.

    A comma separates methods and options alike: what has `=` before any `:` is one more option of
    the method before it. An option is a `sam_*` argument without its prefix, an option of the
    method, or any other training argument; `--NAME=VALUE` is an argument of the script's own.

    Raises:
        ValueError: an unknown method or option, a value that is not allowed, a row that is there
            twice, or rows without a `none` to compare them with.
    """
    rows: list[Row] = []
    for piece in text.split(","):
        head, _, option = piece.strip().partition(":")
        if "=" in head:
            head, option = "", piece.strip()
        if head:
            rows.append(Row(head, _known(head)))
        if option:
            _add(rows, option)
    for row in rows:
        _check(row)
    _find_rivals(rows)
    _check_all(rows)
    return rows


def _find_rivals(rows: list[Row]) -> None:
    shared = [row.others for row in rows if not row.plain]
    if any(row.plain and not row.others for row in rows):
        for row in rows:
            row.rival = row.plain and bool(row.others) and row.others not in shared


def _known(method: str) -> str:
    from ..methods import METHODS

    if method not in METHODS:
        raise ValueError(
            f"--methods: {method!r} is not a method; choose from {', '.join(METHODS)}"
            f"{nearest(method, METHODS)}"
        )
    return method


def _add(rows: list[Row], option: str) -> None:
    """Add one `NAME=VALUE` to the last row."""
    name, equals, value = option.partition("=")
    if not rows or not equals or not name:
        raise ValueError(f"--methods: {option!r} is not an option of a method; {FORM}")
    row = rows[-1]
    row.text += ("," if ":" in row.text else ":") + option
    _place(row, name, value)


def _place(row: Row, name: str, value: str) -> None:
    """Put an option where it belongs: to the method's arguments, its fields, or the others."""
    from dataclasses import fields

    from ..arguments import SAMArguments, SAMTrainingArguments
    from ..methods import METHODS

    plain = name.removeprefix("--").removeprefix("sam_")
    own = [f.name for f in fields(METHODS[row.method]) if not f.metadata.get("python")]
    shared = [f.name.removeprefix("sam_") for f in fields(SAMArguments) if f.name != "sam"]
    others = [f.name for f in fields(SAMTrainingArguments)]
    if name.removeprefix("--") in OURS or f"sam_{plain}" in OURS:
        raise ValueError(f"--methods: {name!r} of {row.text!r} is set by the comparison itself")
    if name == EMA:
        row.ema = value
    elif plain in shared and not name.startswith("--"):
        row.sam[f"sam_{plain}"] = value
    elif plain in own and not name.startswith("--"):
        row.options[plain] = value
    elif plain in others or name.startswith("--"):
        row.others[name.removeprefix("--")] = value
    else:
        known = [*own, *shared, EMA]
        raise ValueError(
            f"--methods: {row.method!r} has no option {name!r}; it has "
            f"{', '.join(dict.fromkeys(known))}, and takes every training argument"
            f"{nearest(name, [*known, *others])}"
        )


def _check(row: Row) -> None:
    """Build the method, so that a value that is not allowed is found before anything runs."""
    from ..arguments import build_method

    if row.ema is not None and not _is_share(row.ema):
        raise ValueError(f"--methods: {row.text}: ema={row.ema} is not between 0 and 1")
    values: dict[str, Any] = {k: v for k, v in row.arguments.items() if k.startswith("sam")}
    try:
        build_method(SimpleNamespace(**values))
    except ValueError as error:
        raise ValueError(f"--methods: {row.text}: {error}") from None


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _check_all(rows: list[Row]) -> None:
    texts = [row.text for row in rows]
    for text in texts:
        if texts.count(text) > 1:
            raise ValueError(f"--methods: {text!r} is there twice")
    for row in rows:
        if not any(other.plain and other.others == row.others for other in rows):
            given = ",".join(f"{k}={v}" for k, v in row.others.items())
            wanted = f"{NONE}:{given}" if given else NONE
            raise ValueError(
                f"--methods: nothing to compare {row.text!r} with: add {wanted!r}, the plain "
                "Trainer with the same other arguments"
            )
