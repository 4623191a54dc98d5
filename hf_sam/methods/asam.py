# SPDX-License-Identifier: Apache-2.0
"""Adaptive SAM (ASAM), whose radius is relative to the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.radius import Rho, adaptive_radius
from ..vector import Vector
from .sam import SAM


@dataclass
class ASAM(SAM):
    """Adaptive Sharpness-Aware Minimization. Kwon, Kim, Park, Choi, ICML 2021, arXiv 2102.11600.

    Update::

        here  = gradient of L at w
        T     = |w| + eta (parameters named *weight*), 1 (others)
        eps   = rho T^2 here / |T here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes, 1 P extra, no state.

    Defaults: rho = 0.5, eta = 0.01, the paper's CIFAR-10 values (rho = 1.0 for CIFAR-100).

    Deviations: none from the authors' code (SamsungLabs/ASAM @ f156a68), which has the same rule
    for T. The "adaptive" option of davda54/sam has eta = 0 and scales every tensor; its radii are
    about four times larger.

    When it does not help: adapters. At initialisation LoRA's B is zero, so eps has length eta rho
    only; use `sam`.

    Attributes:
        rho: radius, dimensionless (relative to the weights), or a schedule for it.
        eta: added to |w|, so that zero weights are perturbed too.
    """

    paper = "Kwon et al., ICML 2021, arXiv 2102.11600"
    use = "when layers have very different scales; radius transfers between models"
    pretrained_rho = None  # its radius is relative to the weights, and none is known for them

    rho: Rho = field(
        default=0.5,
        metadata={
            "help": "radius, dimensionless",
            "low": 0.0,
            "grid": (0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0),
        },
    )
    eta: float = field(default=0.01, metadata={"help": "added to |w|", "low": 0.0})

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return rho T^2 here / |T here|."""
        return adaptive_radius(self.rho, self.eta)(here, at)
