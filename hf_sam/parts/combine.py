# SPDX-License-Identifier: Apache-2.0
"""Combinations of the gradients here (at w) and there (at w + eps) into the update.

A combination is called with the gradient here before that vector is consumed, and returns a
function of the gradient there. So it keeps exactly what it needs of the first gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..vector import Vector
from .base import Part

Finish = Callable[[Vector], Vector]


@dataclass
class Combine(Part):
    """`combine(here)` returns a function from the gradient there to the update."""

    def __call__(self, here: Vector) -> Finish:
        """Keep what is needed of the gradient here, and return a function of the one there."""
        raise NotImplementedError

    @property
    def needs_here(self) -> bool:
        """Whether the update depends on the gradient here other than through the perturbation."""
        return True


@dataclass
class there_only(Combine):
    """The gradient there is the update, as in SAM."""

    def __call__(self, here: Vector) -> Finish:
        """Return the identity, and keep nothing of the gradient here."""
        return lambda there: there

    @property
    def needs_here(self) -> bool:
        """Whether the gradient here is needed, which is false for this combination."""
        return False


@dataclass
class rescaled(Combine):
    """The gradient there at the length of the gradient here: |here| / (|there| + 1e-12) there.

    Both norms are over all parameters, even if only some of them are perturbed. Of the gradient
    here, only the number |here| is kept.
    """

    def __call__(self, here: Vector) -> Finish:
        """Keep the length of the gradient here, and return a function that rescales to it."""
        length = here.norm()
        return lambda there: there.mul_(length / (there.norm() + 1e-12))
