# SPDX-License-Identifier: Apache-2.0
"""`Composed`: a method that is put together from the parts of several papers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.combine import Combine, there_only
from ..parts.direction import Direction
from ..vector import Vector
from .base import Perturbing


@dataclass
class Composed(Perturbing):
    """A method made of a direction for the perturbation and a combination of both gradients.

    Update::

        here  = gradient of L at w
        eps   = ascent(here)
        there = gradient of L at w + eps
        u     = combine(here, there)

    Attributes:
        ascent: the direction that turns the gradient here into eps, such as
            `chain(minus_average(), radius(0.1))`.
        combine: the combination of both gradients; by default it is the gradient there.

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
        """Return the combination of both gradients."""
        if self.ascent.needs_gradient or self.needs_here:
            here = at.ascent(self)
        else:  # a direction from earlier updates, which costs no pass
            here = at.weights().on([False] * len(at.params))
        finish = self.combine(here)  # takes what it needs of here before eps consumes it
        eps = self.ascent(at.perturbable(here), at)
        del here  # frees the tensors that eps has left out
        with at.perturbed(eps):
            there = at.gradient()
        return finish(there)
