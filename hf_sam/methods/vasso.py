# SPDX-License-Identifier: Apache-2.0
"""Variance-suppressed SAM."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.direction import AverageDirection
from ..parts.radius import radius
from ..vector import Vector
from .sam import SAM


@dataclass
class VaSSO(AverageDirection, SAM):
    """Variance-suppressed SAM (VaSSO). Li, Giannakis, NeurIPS 2023, arXiv 2309.15639.

    Update::

        here = gradient of L at w
        d    = (1 - theta) d + theta here   (d = here at first use)
        eps  = rho d / |d|
        u    = there = gradient of L at w + eps

    One batch's gradient is a noisy guide to the worst point nearby; its running average is a
    steadier one.

    Cost: 2 passes, 2 P extra (the average and the snapshot), state: the average d.

    Defaults: rho = 0.05, SAM's (the authors take 0.2 for WRN-28-10 on CIFAR-100); theta = 0.9, the
    authors'.

    Deviations: the authors' code adds 1e-7 to |d|; here a zero or non-finite |d| means no
    perturbation.

    When it does not help: large batches, whose gradients agree anyway; a small theta follows where
    the weights have been, not where they are.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        theta: weight of this update's gradient in the average; 1 is SAM.
    """

    paper = "Li, Giannakis, NeurIPS 2023, arXiv 2309.15639"
    memory = "2"
    use = "small batches, where one gradient is a poor guide; Friendly SAM's opposite"

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return the average of the gradients, scaled to the radius."""
        return radius(self.rho)(self.average_(here), at)
