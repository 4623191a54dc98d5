# SPDX-License-Identifier: Apache-2.0
"""hf_sam: Sharpness-Aware Minimization (not Segment Anything) for the Hugging Face Trainer."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SAMTrainer": "trainer",
    "SAMMixin": "trainer",
    "SAMTrainingArguments": "arguments",
    "SAMArguments": "arguments",
    "Data": "landscape",
    "Landscape": "landscape",
    "Progress": "landscape",
    "Update": "landscape",
    "Vector": "vector",
    "METHODS": "methods",
    "Method": "methods",
}


def _method_names() -> list[str]:
    """Return the names of the method classes."""
    from .methods import METHODS, WRAPPERS

    return [kind.__name__ for kind in (*METHODS.values(), *WRAPPERS)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import hf_sam` stays fast."""
    if name == "__all__":
        return ["__version__", *_HOMES, *_method_names()]
    if name in _HOMES:
        return getattr(importlib.import_module(f"hf_sam.{_HOMES[name]}"), name)
    # Names of methods are those in METHODS: a new method needs no line here.
    if name[:1].isupper() and name in _method_names():
        return getattr(importlib.import_module("hf_sam.methods"), name)
    raise AttributeError(f"module 'hf_sam' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__getattr__("__all__"))
