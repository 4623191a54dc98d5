# SPDX-License-Identifier: Apache-2.0
"""Along what to perturb: parts that turn a direction into another, one after the other.

Each takes `(v, at)`, a direction whose storage it may reuse, and the Landscape; each returns a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..vector import Vector
from .base import Part


@dataclass
class Direction(Part):
    """A part of the ascent: `direction(v, at)` returns the next direction and may reuse v's storage."""

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v."""
        raise NotImplementedError


@dataclass(init=False)
class chain(Direction):  # noqa: N801 - parts read as functions
    """Directions one after the other, in the order in which the paper applies them."""

    parts: tuple[Direction, ...]

    def __init__(self, *parts: Direction) -> None:
        self.parts = parts

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction after all parts."""
        for part in self.parts:
            v = part(v, at)
        return v
