# SPDX-License-Identifier: Apache-2.0
"""Momentum-SAM, which perturbs along the momentum of earlier gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.radius import Rho
from ..parts.stale import Momentum
from ..vector import Vector
from .base import OnePass


@dataclass
class MomentumSAM(Momentum, OnePass):
    """Momentum-SAM (MSAM). Becker, Altrock, Risse, 2024, arXiv 2401.12033; not `msam`.

    Update::

        eps = -rho m / |m|
        u   = gradient of L at w + eps
        m   = decay m + u   for the next update

    The perturbation goes against the momentum: the way that the optimizer is about to go. There is
    no pass at w: the loss that is logged is the one at w + eps, there is no `sam/sharpness`, and
    norm layers' running statistics come from w + eps, too. Evaluation, saving and callbacks see w.

    Cost: 1 pass, 2 P extra (the momentum and the snapshot), state: the momentum.

    Defaults: rho = 3, the paper's for CIFAR and images from scratch (2.2 for WRN-16-4, up to 10 for
    ViT), much more than SAM's; decay = 0.9, SGD's usual momentum and the decay of AdamW's first
    moment.

    Deviations: the momentum is the method's own. It points where SGD's buffer and AdamW's
    `exp_avg`, not preconditioned, point at the same decay, but for clipping and L2 weight decay,
    which it does not see. The authors' code leaves the weights perturbed between updates; here they
    return.

    When it does not help: in the learning rate's warm-up, where the paper finds it worse than the
    plain optimizer: give `sam_when="after_warmup"`. With pretrained weights 3 is too far: begin
    with `sam_rho=0.01`.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        decay: decay of the momentum, per update.
    """

    paper = "Becker et al., 2024, arXiv 2401.12033"
    memory = "2"
    use = "images from scratch at the price of plain training, with a tuned radius"

    rho: Rho = field(
        default=3.0,
        metadata={
            "help": "radius, weight-space L2 norm",
            "low": 0.0,
            "grid": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        },
    )

    def along(self, at: Landscape) -> Vector | None:
        """Return the direction against the momentum of earlier gradients."""
        momentum = self.earlier(at)
        return None if momentum is None else momentum.mul_(-1.0)
