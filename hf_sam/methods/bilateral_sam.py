# SPDX-License-Identifier: Apache-2.0
"""Bilateral SAM, which also looks at the loss on the other side of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..landscape import Landscape
from ..parts.radius import Rho, radius
from ..vector import Vector
from .base import Perturbing


@dataclass
class BilateralSAM(Perturbing):
    """Bilateral SAM. Deng, Pang, Zhang, Huang, 2024, arXiv 2409.13173.

    Update::

        here  = gradient of L at w
        above = gradient of L at w + rho here / |here|
        below = gradient of L at w - r here / |here|,   r = rho_min lr / max lr
        u     = above + here - |above| / |below| below

    It lowers the rise of the loss above (SAM's sharpness) and also the fall of the loss below. (Its
    paper calls it BSAM; it is not the Bayesian bSAM.)

    Cost: 3 passes, 2 P extra (during the last pass: the snapshot, and the sum of the first two
    gradients), no state.

    Defaults: rho = 0.05 and rho_min = 0.05 times the learning rate's share of its maximum, the
    authors'.

    Deviations: the weights return. The authors' code (ajiaaa/BSAM @ c62a44f) loses its snapshot
    before the last pass, so that each of its updates also moves the weights by -r here / |here|;
    its published results include that.

    When it does not help: when time is short. It costs half as much again as `sam`, and the only
    evidence is the authors' own.

    Attributes:
        rho: radius above, weight-space L2 norm, or a schedule for it.
        rho_min: radius below at the maximal learning rate, weight-space L2 norm.
    """

    paper = "Deng et al., 2024, arXiv 2409.13173"
    passes = "3"
    memory = "2"
    use = "research; when SAM helps and time is no concern"

    rho: Rho = field(default=0.05, metadata={"help": "radius above, L2 norm", "low": 0.0})
    rho_min: float = field(
        default=0.05,
        metadata={"help": "radius below, L2 norm, times the learning rate's share", "low": 0.0},
    )

    def update(self, at: Landscape) -> Vector:
        """Return above + here - |above| / |below| below."""
        here = at.ascent(self)
        with at.perturbed(radius(self.rho)(at.perturbable(here).clone(), at)):
            above = at.gradient()
        length = above.norm()  # before `above` becomes the sum
        both = above.add_(here)
        down = radius(self.rho_min * at.progress.lr_ratio)(at.perturbable(here).mul_(-1.0), at)
        del here  # frees the tensors that are not perturbed
        with at.perturbed(down):
            below = at.gradient()
        size = below.norm()
        ratio = torch.where(size > 0, length / size, torch.zeros_like(size))
        return both.add_(below.mul_(-ratio))
