# SPDX-License-Identifier: Apache-2.0
"""The plain Trainer, written as a method."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..vector import Vector
from .base import Method


@dataclass
class Plain(Method):
    """The plain Trainer, without any perturbation.

    Update::

        u = gradient of L at w

    Cost: 1 pass, no extra memory, no state.
    """

    paper = "the base optimizer alone"
    passes = "1"
    memory = "0"
    use = "the baseline to compare with"
    needs_here = False

    one_gradient = True

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w."""
        return at.gradient()
