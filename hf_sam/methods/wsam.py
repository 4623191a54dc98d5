# SPDX-License-Identifier: Apache-2.0
"""Weighted SAM, in which the sharpness has a weight of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..landscape import Landscape
from ..vector import Vector
from .sam import SAM


@dataclass
class WSAM(SAM):
    """Weighted SAM (WSAM). Yue et al., KDD 2023, arXiv 2305.15817.

    Update::

        here  = gradient of L at w
        there = gradient of L at w + rho here / |here|
        a     = gamma / (1 - gamma)
        coupled     u = (1 - a) here + a there
        decoupled   u = here, and w moves by -lr a (there - here) beside the optimizer

    SAM minimises the loss plus its sharpness once; here the sharpness counts a times. Coupled,
    gamma = 0.5 is SAM and gamma = 0 the base optimizer. Decoupled, the optimizer does not
    precondition or average the sharpness term.

    Cost: 2 passes, 2 P extra (the gradient here and the snapshot), no state.

    Defaults: rho = 0.05 and gamma = 0.9, the authors'; coupled, where theirs is decoupled, because
    the decoupled step is not preconditioned and so depends on the loss's scale.

    Deviations: the decoupled step is made before the optimizer's, not after it, and is not clipped
    (the authors clip both gradients); the two differ by the decay of that step. An update whose
    gradients are not finite makes none.

    When it does not help: gamma = 0.9 weighs the sharpness nine times, which calls for a smaller
    radius than SAM's. Decoupled, it sends the weights once more in each update under DeepSpeed.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        gamma: weight of the sharpness; 0.5 is SAM.
        decoupled: whether the sharpness term bypasses the optimizer.
    """

    paper = "Yue et al., KDD 2023, arXiv 2305.15817"
    memory = "2"
    use = "when SAM helps and more of it, or less, should"
    needs_here = True

    gamma: float = field(
        default=0.9,
        metadata={
            "help": "weight of the sharpness",
            "low": 0.0,
            "high": 0.99,
            "grid": (0.7, 0.9, 0.95),
        },
    )
    decoupled: bool = field(
        default=False, metadata={"help": "sharpness beside the optimizer", "choices": (False, True)}
    )

    def update(self, at: Landscape) -> Vector:
        """Return the weighted gradient, or the gradient here after the step along the sharpness."""
        here = at.ascent(self)
        with at.perturbed(self.perturbation(at.perturbable(here).clone(), at)):
            there = at.gradient()
        a = self.gamma / (1 - self.gamma)
        if not self.decoupled:
            return there.mul_(a).add_(here, 1 - a)
        sharp = there.add_(here, -1.0)
        size = sharp.norm()
        at.move_(sharp.where_(torch.isfinite(size)), -a * at.rate())
        return here
