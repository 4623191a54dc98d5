# SPDX-License-Identifier: Apache-2.0
"""The methods: one paper, one file."""

from .asam import ASAM
from .base import Method
from .plain import Plain
from .sam import SAM
from .when import When

METHODS: dict[str, type[Method]] = {
    "none": Plain,
    "sam": SAM,
    "asam": ASAM,
}

__all__ = ["ASAM", "METHODS", "SAM", "Method", "Plain", "When"]
