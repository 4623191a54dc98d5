# SPDX-License-Identifier: Apache-2.0
"""SAM with the parts of other papers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.combine import Combine, there_only
from ..parts.direction import Direction
from ..vector import Vector
from .base import Perturbing


@dataclass
class Composed(Perturbing):
    """A perturbation and a combination of both gradients, put together from parts.

    Update::

        here  = gradient of L at w
        eps   = ascent(here)
        there = gradient of L at w + eps
        u     = combine(here, there)

    Attributes:
        ascent: direction from the gradient here to eps, such as `chain(minus_average(),
            radius(0.1))`.
        combine: what to make of both gradients; by default the gradient there.

    Example:
        >>> from hf_sam.parts import chain, fisher_mask, minus_average, radius
        >>> friendly_and_sparse = Composed(chain(minus_average(), radius(0.1), fisher_mask(0.5)))
        >>> friendly_and_sparse.keeps_state
        True
    """

    passes = "2"
    memory = "1, and what the parts keep"
    use = "a mixture of papers"

    ascent: Direction = field(metadata={"help": "direction to eps"})
    combine: Combine = field(
        default_factory=there_only, metadata={"help": "what to make of both gradients"}
    )

    @property
    def needs_here(self) -> bool:  # type: ignore[override]
        """Whether the combination uses the gradient here."""
        return self.combine.needs_here

    def update(self, at: Landscape) -> Vector:
        """Return what `combine` makes of both gradients."""
        here = at.ascent(self)
        finish = self.combine(here)
        eps = self.ascent(at.perturbable(here), at)
        del here  # of which eps may have left out tensors
        with at.perturbed(eps):
            there = at.gradient()
        return finish(there)
