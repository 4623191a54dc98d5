# SPDX-License-Identifier: Apache-2.0
"""What every method has: a call from a Landscape to the update."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        memory: extra memory beyond the plain Trainer, in P (copies of the trainable parameters), as
            text.
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
        """Return the update: what the optimizer gets as gradient, `None` where the gradient at w
        is `None`.
        """
        return at.finish(self.update(at))

    def update(self, at: Landscape) -> Vector:
        """Return the update for this Landscape."""
        raise NotImplementedError

    @property
    def when(self) -> Schedule | None:
        """The schedule that decides which updates are perturbed, also a method within's; or
        None.
        """
        within = (child.when for _, child in self.children() if isinstance(child, Method))
        return next((when for when in within if when is not None), None)

    @property
    def local_ascent(self) -> bool:
        """Whether the update needs nothing but the descent gradient, so that ranks may ascend on
        their own.
        """
        return False

    def perturbations(self, batches: int) -> int:
        """Return how many groups of a rank's examples are perturbed each for itself, in an update
        of `batches` micro-batches.
        """
        within = (c.perturbations(batches) for _, c in self.children() if isinstance(c, Method))
        return max(within, default=1)

    @property
    def wants_losses(self) -> bool:
        """Whether this method or one below it compares the losses of single examples."""
        return any(c.wants_losses for _, c in self.children() if isinstance(c, Method))

    @property
    def cuts(self) -> bool:
        """Whether this method or one below it chooses or groups single examples."""
        return any(isinstance(part, Method) and part.selects for part in self.walk())


@dataclass
class Perturbing(Method):
    """A method whose ascent gradient may be taken on a part of the batch.

    Attributes:
        ascent_fraction: of each micro-batch's examples, from its beginning, for the ascent
            gradient; the clean loss that is logged is theirs, and sharpness is not read. Bahri,
            Mobahi, Tay, ACL 2022, arXiv 2110.08529.
    """

    ascent_fraction: float = field(
        default=1.0,
        kw_only=True,
        metadata={"help": "share of the batch for the ascent", "low": 0.01, "high": 1.0},
    )

    @property
    def starts_at_w(self) -> bool:  # type: ignore[override]
        """Unless the first pass is on a part of the batch."""
        return self.ascent_fraction == 1

    @property
    def selects(self) -> bool:  # type: ignore[override]
        """With a fraction below 1."""
        return self.ascent_fraction < 1
