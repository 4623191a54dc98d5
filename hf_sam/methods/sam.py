# SPDX-License-Identifier: Apache-2.0
"""Sharpness-Aware Minimization (SAM), the method that all others vary."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
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
    official code logs the perturbed pass). If the gradient norm is zero or not finite, there is no
    perturbation instead of a NaN.

    When it does not help: training that ends before it overfits (a single epoch), and fine-tuning
    at a radius that is too large for the pretrained weights; try `sam_rho=0.01` before giving up.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.

    Example:
        >>> from hf_sam import SAMTrainingArguments
        >>> args = SAMTrainingArguments("out", sam="sam", sam_rho=0.01)
    """

    paper = "Foret et al., ICLR 2021, arXiv 2010.01412"
    passes = "2"
    memory = "1"
    use = "the reference; label noise, long training, images"
    needs_here = False

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + eps."""
        eps = self.perturbation(at.ascent(self), at)
        with at.perturbed(eps):
            return at.gradient()

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return eps for the gradient here. It consumes the gradient's storage."""
        return radius(self.rho)(here, at)
