# SPDX-License-Identifier: Apache-2.0
"""Sparse SAM with a dynamic mask, which exchanges some of its weights from time to time."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.masks import DynamicMask
from ..parts.radius import radius
from ..vector import Vector
from .sam import SAM


@dataclass
class SparseSAMDynamic(DynamicMask, SAM):
    """Sparse SAM with a dynamic mask. Mi et al., NeurIPS 2022, arXiv 2210.05177.

    Update::

        mask  = random at first; at a renewal its least weights are exchanged for others
        here  = gradient of L at w
        eps   = mask * rho here / |here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes; extra memory (1 - sparsity) P, as only what is perturbed needs a snapshot, and
    the mask (one byte per weight: 0.25 P in float32); at a renewal three masks and half a P of
    random scores for a moment. State: the mask and the update of its last renewal.

    Defaults: rho = 0.05, sparsity = 0.5, drop_rate = 0.5 (of the live weights, falling along half a
    cosine to 0), dropped by gradient, grown at random, renewal once per epoch: the authors' command
    line.

    Deviations from the authors' code (Mi-Peng/Sparse-Sharpness-Aware-Minimization @ 76974fd): what
    is dropped and what is grown are disjoint and equally many, so the live count never changes
    (there, it shrinks where the live share times the drop rate exceeds the sparsity); weights are
    compared at w (there, at w + eps).

    When it does not help: as a way to save time.

    Attributes:
        rho: radius, weight-space L2 norm of the unmasked perturbation, or a schedule for it.
        sparsity: share of the weights that is not perturbed; 0 is SAM, 1 the plain Trainer.
        drop_rate: share of the live weights exchanged at the first renewal.
        drop: score by which live weights stay: `gradient` or `weight`.
        growth: score by which others come: `random` or `gradient`.
        update_interval: updates between renewals of the mask; None is one epoch.
    """

    paper = "Mi et al., NeurIPS 2022, arXiv 2210.05177"
    passes = "2"
    memory = "0.75; 1.25 at a new mask"
    use = "Sparse SAM without extra passes for its mask"

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return the perturbation of the full gradient, with zeros where the mask is off."""
        # The norm is taken before the mask, as in the paper, so that |eps| <= rho.
        return self.masked_(radius(self.rho)(here, at), at)
