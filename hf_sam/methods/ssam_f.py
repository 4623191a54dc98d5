# SPDX-License-Identifier: Apache-2.0
"""Sparse SAM with a Fisher mask, which perturbs the weights with the largest Fisher information."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.masks import FisherMask
from ..parts.radius import radius
from ..vector import Vector
from .sam import SAM


@dataclass
class SparseSAMFisher(FisherMask, SAM):
    """Sparse SAM with a Fisher mask. Mi et al., NeurIPS 2022, arXiv 2210.05177.

    Update::

        F     = mean over drawn examples of (gradient of the example's loss)^2
        mask  = the (1 - sparsity) N weights of the largest F, at its renewal
        here  = gradient of L at w
        eps   = mask * rho here / |here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes; extra memory (1 - sparsity) P, as only what is perturbed needs a snapshot, and
    the mask (one byte per weight: 0.25 P in float32; one per tensor under `structured`); at a
    renewal `fisher_samples` passes of one example, and 1 P and the mask for a moment, before the
    update's own passes. No time is saved without sparse kernels. State: the mask and the update of
    its last renewal.

    Defaults: rho = 0.05, sparsity = 0.5, 128 examples, renewal once per epoch; the authors' recipes
    use 16 to 1024.

    Deviations from the authors' code (Mi-Peng/Sparse-Sharpness-Aware-Minimization @ 76974fd): the
    first mask comes before the first perturbation (there, the first update is plain SGD with an
    all-zero mask); the examples are drawn by (seed, update), pass through the model without dropout
    and leave norm statistics alone (there, they run in training mode, one by one, through batch
    norm); over ranks the squares are averaged, not the gradients. The norm is over the full
    gradient, before masking, as in their code, so that |eps| <= rho.

    When it does not help: as a way to save time. Below some ten million trainable weights
    (adapters) a mask has little to choose from.

    Attributes:
        rho: radius, weight-space L2 norm of the unmasked perturbation, or a schedule for it.
        sparsity: share of the weights that is not perturbed; 0 is SAM, 1 the plain Trainer.
        fisher_samples: examples per mask.
        update_interval: updates between renewals of the mask; None is one epoch.
        pattern: `unstructured`, `structured` (whole tensors), or `n:m` along the input dimension.
    """

    paper = "Mi et al., NeurIPS 2022, arXiv 2210.05177"
    passes = "2 + examples at a new mask"
    memory = "0.75, 0.5 structured; 1.25 at a new mask"
    use = "SAM with half the perturbed weights; less memory with pattern=structured"

    def update(self, at: Landscape) -> Vector:
        """Return SAM's update, after a renewal of the mask if one is due."""
        self.renew_early(at)  # before the gradient here takes up memory
        return super().update(at)

    def perturbation(self, here: Vector, at: Landscape) -> Vector:
        """Return the perturbation of the full gradient, with zeros where the mask is off."""
        # The norm is taken before the mask, as in the paper, so that |eps| <= rho.
        return self.masked_(radius(self.rho)(here, at), at)
