# SPDX-License-Identifier: Apache-2.0
"""What every method has: a call from a Landscape to the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..landscape import Landscape
from ..parts.base import Part
from ..parts.when import Schedule
from ..vector import Vector


@dataclass
class Method(Part):
    """A recipe that turns a Landscape into one gradient; subclasses write it as `update(at)`.

    Class attributes:
        paper: "authors, venue, arXiv id".
        passes: forward-backward passes per update, as text.
        memory: extra memory beyond the plain Trainer, in P (copies of the trainable parameters), as text.
        use: when to use it, in a few words.
        starts_at_w: the first pass is the whole gradient at w.
        selects: single examples of a batch are chosen or grouped.
    """

    paper: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    memory: ClassVar[str] = ""
    use: ClassVar[str] = ""

    starts_at_w = True
    selects = False

    def __call__(self, at: Landscape) -> Vector:
        """Return the update: what the optimizer gets as gradient, `None` where the gradient at w is `None`."""
        return at.finish(self.update(at))

    def update(self, at: Landscape) -> Vector:
        """Return the update for this Landscape."""
        raise NotImplementedError

    @property
    def when(self) -> Schedule | None:
        """The schedule that decides which updates are perturbed; None for all of them."""
        return None

    @property
    def local_ascent(self) -> bool:
        """Whether the update needs nothing but the descent gradient, so that ranks may ascend on their own."""
        return False

    @property
    def cuts(self) -> bool:
        """Whether this method or one below it chooses or groups single examples."""
        return any(isinstance(part, Method) and part.selects for part in self.walk())
