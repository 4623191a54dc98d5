# SPDX-License-Identifier: Apache-2.0
"""Friendly SAM (F-SAM), which perturbs along the noise of the batch gradient."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.direction import MinusAverage
from ..parts.radius import radius
from ..vector import Vector
from .sam import SAM


@dataclass
class FriendlySAM(MinusAverage, SAM):
    """Friendly SAM. Li, Zhou, He, Cheng, Huang, CVPR 2024, arXiv 2403.12350.

    Update::

        here  = gradient of L at w
        m     = decay m + (1 - decay) here;  d = here - sigma m
        eps   = rho d / |d|
        u     = there = gradient of L at w + eps

    The perturbation follows the batch's own noise, not the gradient of the whole training set,
    which m estimates.

    Cost: 2 passes, 2 P extra (the average and the snapshot), state: the average m.

    Defaults: rho = 0.05, SAM's (the authors take 0.2 for CIFAR-100 with ResNet-18); sigma = 1 and
    decay = 0.9, the authors' class defaults (their scripts: decay 0.6 for ResNet-18, 0.9 for
    WRN-28-10).

    Deviations: the order is the paper's, which subtracts the average that already includes this
    gradient. The authors' code (nblt/F-SAM @ 2e2f989) subtracts the previous average, which gives
    the same direction for sigma = 1 and another one otherwise. The first update is a plain SAM
    update, as in the code. A difference d below 1e-6 of the gradient counts as zero.

    When it does not help: gradients without noise. If every batch is the whole training set, d
    vanishes, nothing is perturbed, and the result is the base optimizer at twice the cost.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        sigma: share of the average that is subtracted.
        decay: decay of the average, per update.
    """

    paper = "Li et al., CVPR 2024, arXiv 2403.12350"
    memory = "2"
    use = "small batches and noisy gradients; where SAM helps, often a little more"

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return the gradient minus its average, scaled to the radius."""
        return radius(self.rho)(self.noise_(here), at)
