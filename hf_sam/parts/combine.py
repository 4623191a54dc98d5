# SPDX-License-Identifier: Apache-2.0
"""What to make of the gradients here (at w) and there (at w + eps).

A combination is called with the gradient here, before that vector is consumed, and returns what to
do with the gradient there. So it keeps of the first exactly what it needs.
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
        """Keep what is needed of the gradient here; return what to do with the one there."""
        raise NotImplementedError

    @property
    def needs_here(self) -> bool:
        """Whether the update depends on the gradient here other than through the perturbation."""
        return True


@dataclass
class there_only(Combine):
    """The gradient there is the update, as in SAM."""

    def __call__(self, here: Vector) -> Finish:
        """Keep nothing."""
        return lambda there: there

    @property
    def needs_here(self) -> bool:
        """No."""
        return False


@dataclass
class rescaled(Combine):
    """The gradient there at the length of the gradient here: |here| / (|there| + 1e-12) there.

    Both norms are over all parameters, also under a mask. Only the number |here| is kept.
    """

    def __call__(self, here: Vector) -> Finish:
        """Keep the length of the gradient here."""
        length = here.norm()
        return lambda there: there.mul_(length / (there.norm() + 1e-12))
