# SPDX-License-Identifier: Apache-2.0
"""Stable SAM, whose update has the length of the gradient at w."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.combine import rescaled
from ..vector import Vector
from .sam import SAM


@dataclass
class StableSAM(SAM):
    """Stable SAM. Tan, Zhang, Liu, Wang, Hao, JMLR 26, 2025, arXiv 2401.07250.

    Update::

        here  = gradient of L at w
        there = gradient of L at w + rho here / |here|
        u     = |here| / |there| there

    The update keeps the gradient's length, so a learning rate tuned without SAM stays right. (The
    journal version calls itself SSAM, which elsewhere is Sparse SAM.)

    Cost: 2 passes, 1 P extra (of the gradient here only the length is kept), no state.

    Defaults: rho = 0.05, SAM's.

    Deviations: none for SAM's perturbation. As in the authors' code (cltan023/stablesam2024 @
    57264e7), 1e-12 is added to |there|. Both norms are plain ones over all parameters.

    When it does not help: with optimizers that normalise the gradient themselves. AdamW hardly
    depends on the gradient's length, so with AdamW it is close to `sam`.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
    """

    paper = "Tan et al., JMLR 26, 2025, arXiv 2401.07250"
    use = "SGD at large learning rates, where SAM becomes unstable"
    needs_here = True

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + eps, rescaled to the length of the gradient here."""
        here = at.ascent(self)
        at_length_of_here = rescaled()(here)  # reads the length before eps consumes the gradient
        eps = self.perturbation(at.perturbable(here), at)
        del here  # frees the tensors that are not perturbed
        with at.perturbed(eps):
            return at_length_of_here(at.gradient())
