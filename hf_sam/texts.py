# SPDX-License-Identifier: Apache-2.0
"""Parsing of options, radii and schedules as users write them on a command line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from .parts.base import Part, nearest
from .parts.radius import SCHEDULES as RADII
from .parts.radius import Rho
from .parts.when import COINS, SCHEDULES, Schedule


def parse_options(options: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return method options as a dict, from a dict, JSON, or `gamma=0.5,beta=0.6`."""
    if options is None or options == "":
        return {}
    if isinstance(options, Mapping):
        return dict(options)
    if options.lstrip().startswith("{"):
        try:
            return dict(json.loads(options))
        except json.JSONDecodeError as error:
            raise ValueError(f"sam_options={options!r} is not valid JSON: {error}") from None
    parsed = {}
    for item in options.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                f"sam_options={options!r}: {item!r} is not NAME=VALUE; write for example "
                "gamma=0.5,beta=0.6"
            )
        parsed[key.strip()] = _value(value.strip())
    return parsed


def parse_rho(rho: Any) -> Rho:
    """Return a radius or a schedule for it, from a number, its text, or a schedule's text."""
    if isinstance(rho, (int, float, Part)):
        return rho  # type: ignore[return-value]
    try:
        return float(rho)
    except ValueError:
        return from_text("sam_rho", rho, RADII, "a number")


def parse_when(when: str | Schedule) -> Schedule:
    """Return the schedule of a text such as `after:0.75` or `random:linear:0:1`."""
    if isinstance(when, Schedule):
        return when
    if when.startswith("random:"):
        return from_text("sam_when", when.removeprefix("random:"), COINS, prefix="random:")
    return from_text("sam_when", when, SCHEDULES, "random:...")


def from_text(
    argument: str, text: str, known: Mapping[str, type], also: str = "", prefix: str = ""
) -> Any:
    """Return `known[name](a, b, ...)` for the text `name:a:b:...` with numbers."""
    name, *words = str(text).split(":")
    listed = ", ".join([*([also] if also else []), *(prefix + k for k in known)])
    if name not in known:
        raise ValueError(
            f"{argument}={prefix}{text}: {name!r} is unknown; choose from "
            f"{listed}{nearest(name, known)}"
        )
    try:
        return known[name](*map(float, words))
    except TypeError:  # a dataclass raises it for too few or too many arguments
        raise ValueError(
            f"{argument}={prefix}{text}: wrong number of values; write "
            f"{prefix}{form_of(known[name])}{getattr(known[name], 'hint', '')}"
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{argument}={prefix}{text}: {error}; write {prefix}{form_of(known[name])}"
        ) from None


def form_of(kind: type) -> str:
    """Return the form in which a schedule is written, such as `name:A:B[:C]`."""
    parameters = list(inspect.signature(kind).parameters.values())
    parts = [
        f":{p.name.upper()}" if p.default is p.empty else f"[:{p.name.upper()}]" for p in parameters
    ]
    return kind.__name__ + "".join(parts)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"None": None, "True": True, "False": False}.get(text, text)
