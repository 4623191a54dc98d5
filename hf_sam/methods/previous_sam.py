# SPDX-License-Identifier: Apache-2.0
"""Previous-gradient SAM, which perturbs along the gradient of the last update."""

from __future__ import annotations

from dataclasses import dataclass

from ..landscape import Landscape
from ..parts.stale import LastGradient
from ..vector import Vector
from .base import OnePass


@dataclass
class PreviousSAM(LastGradient, OnePass):
    """SAM along the last update's gradient. arXiv 2503.11147; Ji et al., NeurIPS 2024 (S2-SAM).

    Update::

        eps = rho s / |s|
        u   = gradient of L at w + eps
        s   = u   for the next update

    There is no pass at w: the loss that is logged is the one at w + eps, there is no
    `sam/sharpness`, and norm layers' running statistics come from w + eps, too. Evaluation, saving
    and callbacks see w.

    Cost: 1 pass, 1 P extra (the kept gradient; its storage holds the snapshot during the pass),
    state: the kept gradient.

    Defaults: rho = 0.05, SAM's.

    Deviations: the first update is plain. In the code of S2-SAM, parameters without `.grad` are
    skipped, which under today's `zero_grad` are all of them, so that it perturbs nothing; here the
    gradient is kept apart. What is kept is the gradient before clipping, averaged over ranks.

    When it does not help: small batches. What SAM's ascent finds in the noise that both passes
    share, the gradient of another batch does not have; try `tail_sam` first. Under a schedule,
    s is the gradient of the last update that the schedule picked.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
    """

    paper = "arXiv 2503.11147; Ji et al., NeurIPS 2024"
    memory = "1"
    use = "when no second pass can be paid for, and batches are large"

    def along(self, at: Landscape) -> Vector | None:
        """Return the last update's gradient."""
        return self.earlier(at)
