# SPDX-License-Identifier: Apache-2.0
"""Sharpness-Aware Minimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.combine import Combine, there_only
from ..parts.direction import Direction
from ..parts.radius import Rho, radius
from ..vector import Vector
from .base import Perturbing


@dataclass
class SAM(Perturbing):
    """Sharpness-Aware Minimization. Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, arXiv 2010.01412.

    Update::

        here  = gradient of L at w
        eps   = rho here / |here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes, 1 P extra (the snapshot lives in the ascent gradient's storage), no state.

    Defaults: rho = 0.05, the paper's CIFAR value and every port's.

    Deviations: weight decay stays with the optimizer (the official JAX code, google-research/sam @
    dae9904, adds it to the loss of both passes). The logged loss is the clean one at w (the
    official code logs the perturbed pass). A zero or non-finite gradient norm means no perturbation
    instead of NaN.

    When it does not help: training that ends before it overfits (a single epoch), and fine-tuning
    at a radius that is too large for the pretrained weights; try `sam_rho=0.01` before giving up.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        ascent: direction from the gradient here to eps; default `radius(rho)`.
        combine: what to make of both gradients; default the gradient there.
    """

    paper = "Foret et al., ICLR 2021, arXiv 2010.01412"
    passes = "2"
    memory = "1"
    use = "the reference; label noise, long training, images"

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    ascent: Direction | None = field(
        default=None, kw_only=True, metadata={"help": "direction to eps", "python": True}
    )
    combine: Combine = field(
        default_factory=there_only,
        kw_only=True,
        metadata={"help": "of both gradients", "python": True},
    )

    def __post_init__(self) -> None:
        """Check the fields and fill in the ascent."""
        super().__post_init__()
        if self.ascent is None:
            self.ascent = self.default_ascent()
        elif type(self) is not SAM:
            raise ValueError(
                f"{type(self).__name__} is defined by its own ascent: use SAM(ascent=...) instead"
            )
        elif self.rho != type(self).rho:
            raise ValueError(
                f"rho={self.rho} has no effect beside ascent={self.ascent}: give the radius "
                f"inside `ascent`"
            )

    def default_ascent(self) -> Direction:
        """Return the direction from the gradient here to eps that the paper names."""
        return radius(self.rho)

    def update(self, at: Landscape) -> Vector:
        """Return the gradient there, or what `combine` makes of both."""
        assert self.ascent is not None
        only = None if self.combine.needs_here else at.some
        here = at.gradient(local_ok=self.local_ascent, only=only, fraction=self.ascent_fraction)
        finish = self.combine(here)
        eps = self.ascent(at.chosen(here), at)
        del here  # of which eps may have left out tensors
        with at.perturbed(eps):
            there = at.gradient()
        return finish(there)

    @property
    def local_ascent(self) -> bool:
        """Unless state or the combination needs the gradient here."""
        return not (self.keeps_state or self.combine.needs_here)
