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
    "Landscape": "landscape",
    "Progress": "landscape",
    "Vector": "vector",
    "METHODS": "methods",
    "Method": "methods",
    "Plain": "methods",
    "SAM": "methods",
    "ASAM": "methods",
    "SparseSAMFisher": "methods",
    "SparseSAMDynamic": "methods",
    "MSAM": "methods",
    "ESAM": "methods",
    "SSSAM": "methods",
    "RSAM": "methods",
    "LookSAM": "methods",
    "FriendlySAM": "methods",
    "StableSAM": "methods",
    "BilateralSAM": "methods",
    "LateSAM": "methods",
    "When": "methods",
    "PerGroup": "methods",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import hf_sam` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_sam' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_sam.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
