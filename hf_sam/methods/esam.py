# SPDX-License-Identifier: Apache-2.0
"""Efficient SAM (ESAM), which perturbs some tensors and descends on the sharpest examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape
from ..parts.radius import Rho, to_length_
from ..vector import Vector
from .base import Method


@dataclass
class ESAM(Method):
    """Efficient SAM. Du et al., ICLR 2022, arXiv 2110.03141; not EfficientSAM.

    Update::

        S     = random parameter tensors, each with probability beta
        here  = gradient of L at w, for the tensors of S
        eps   = (rho / beta) here / |here|
        B+    = the ceil(gamma B) examples whose loss rises most from w to w + eps
        there = gradient of the mean loss of B+ at w + eps
        u     = there

    Cost: 2 passes, of which the first computes the weight gradients of S only and the second runs
    on B+, and one forward for the choice of B+ (none with gamma = 1); 1 P extra; no state. With
    weight gradients a third of the work, beta = 0.6 and gamma = 0.5 make (1 + 1 + beta + 1 + 3
    gamma) / 3 = 1.70 times the plain update. The often-quoted 1.4 is SAM's time over ESAM's.

    Defaults: rho = 0.05, beta = 0.6, gamma = 0.5, the paper's for ResNet-18.

    Deviations from the authors' code (dydjw9/Efficient_SAM @ 1e06840): ceil(gamma B) examples by
    rank (there, a strict comparison keeps one fewer, none for small batches); S is drawn by (seed,
    update), equally on all ranks, also in the first update; gamma = 1 needs no extra forward; norm
    statistics move once. As there, S consists of whole tensors, and the norm is over S and divided
    by beta, so |eps| = rho / beta.

    When it does not help: with frozen layers and adapters (weight gradients are cheap there, beta
    saves nothing); on small batches; in short training from scratch, where the choice of examples
    costs accuracy (benchmarks/CIFAR10.md). Independent runs on CIFAR-100 and ViT placed it between
    the base optimizer and SAM.

    Attributes:
        rho: radius before the division by beta, weight-space L2 norm, or a schedule for it.
        beta: probability with which a tensor is perturbed; 1 perturbs all.
        gamma: share of the examples in the second gradient; 1 takes all.
    """

    paper = "Du et al., ICLR 2022, arXiv 2110.03141"
    passes = "1.5, and a forward"
    memory = "1"
    use = "cheaper SAM for full fine-tuning and images"
    pretrained_rho = 0.01

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    beta: float = field(
        default=0.6,
        metadata={
            "help": "probability of a tensor",
            "low": 0.01,
            "high": 1.0,
            "grid": (0.5, 0.6, 1.0),
        },
    )
    gamma: float = field(
        default=0.5,
        metadata={"help": "share of the examples", "low": 0.01, "high": 1.0, "grid": (0.5, 1.0)},
    )

    needs_here = False

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + eps of the examples whose loss rises most."""
        here = at.ascent(self, only=self._tensors(at), with_losses=self.gamma < 1)
        # The norm is over S alone, so the division by beta makes |eps| = rho / beta.
        eps = to_length_(here, self.rho, here.norm(), at).mul_(1 / self.beta)
        with at.perturbed(eps):
            return (self._sharpest(at) if self.gamma < 1 else at).gradient()

    def _tensors(self, at: Landscape) -> list[bool]:
        """Draw S among the parameters that may be perturbed, at least one of them."""
        toss = torch.rand(len(at.params), generator=at.generator, dtype=torch.float64)
        toss[~torch.tensor(at.where)] = 2.0  # above every probability, so it is never drawn
        # The least number is always below the threshold, so that S is not empty.
        return (toss < max(self.beta, float(toss.min()) + 1e-12)).tolist()

    def _sharpest(self, at: Landscape) -> Landscape:
        """Return the Landscape of the examples whose loss rose most."""
        rises = [after - before for after, before in zip(at.losses_here(), at.losses, strict=True)]
        # The descent pass sees some examples only, so sharpness is read from these losses.
        at.readings["sharpness"] = at.data.loss_of(rises)
        return at.select([most(rise, self.gamma) for rise in rises])


def most(values: Tensor, share: float) -> Tensor:
    """Return the positions of the ceil(share B) largest values, in ascending order of position.

    Among equal values the first ones are chosen.

    Args:
        values: (B,).
        share: the share of B, above 0 and up to 1; at least one position is returned.
    """
    # 1e-9 keeps a product such as 0.07 * 100 = 7.000000000000001 from being rounded up to 8.
    count = min(max(math.ceil(share * len(values) - 1e-9), 1), len(values))
    return values.sort(descending=True, stable=True).indices[:count].sort().values
