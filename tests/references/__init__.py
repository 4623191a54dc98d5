# SPDX-License-Identifier: Apache-2.0
"""Every method once more: slow and obvious, on one flat float64 vector, from the formula.

`KEY.py` holds a class of that name, which is built with the method's options and called with a
`Question` per update; it returns the update. It shares no code with hf_sam, so that a mistake has
to be made twice to go unseen. `OPTIONS` lists options to compare besides the defaults, `BY_HAND`
examples that were worked out on paper.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_sam import METHODS
from tests.references.by_hand import ByHand
from tests.references.question import Question

__all__ = ["REFERENCES", "ByHand", "Question", "by_hand", "options_of"]


def _module(key: str) -> ModuleType:
    return importlib.import_module(f"tests.references.{key}")


REFERENCES: dict[str, Callable[..., Any]] = {
    key: getattr(_module(key), key)
    for key in METHODS
    if (Path(__file__).parent / f"{key}.py").is_file()
}


def options_of(key: str) -> list[dict[str, Any]]:
    """Return the options with which a method is compared with its reference."""
    module = _module(key)
    return [*getattr(module, "DEFAULTS", [{}]), *getattr(module, "OPTIONS", [])]


def by_hand(key: str) -> list[ByHand]:
    """Return the worked examples of a method."""
    return list(getattr(_module(key), "BY_HAND", []))
