# SPDX-License-Identifier: Apache-2.0
"""LookSAM and Look-LayerSAM, which compute SAM's gradient in every k-th update only."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..landscape import Landscape
from ..parts.direction import NEGLIGIBLE, Direction
from ..parts.radius import Rho, layer_radius, radius
from ..vector import Vector
from .base import Perturbing


@dataclass
class LookSAM(Perturbing):
    """LookSAM and Look-LayerSAM. Liu, Mai, Chen, Hsieh, You, CVPR 2022, arXiv 2203.02714.

    Update::

        every k-th   there    = gradient of L at w + rho here / |here|;  u = there
                     vertical = there - <there, here> / |here|^2 here
        others       u        = here + alpha |here| / |vertical| vertical

    SAM's update every k updates; in between, the part of it that is perpendicular to the gradient
    is used again. It changes slowly, and the added term always has the length alpha |here|.

    Cost: 1 + 1/k passes, 1 P extra on most updates (the vertical part) and 2 P on every k-th (the
    gradient here and the snapshot), state: the vertical part, and the number of updates so far.

    Defaults: k = 5, the paper's; alpha = 0.1, the best of an independent study at k = 5 (arXiv
    2401.12033), where the paper's 0.7 (for ViT at rho = 1) did badly; rho = 0.05, SAM's; layerwise
    = "none".

    Deviations: there is no official code. The decomposition is global (some ports do it per
    tensor). `layerwise` scales the perturbation per tensor for large batches, as Look-LayerSAM
    does; its exact formula is not published, so both candidates exist: "unit" rho g_l / |g_l|, and
    "trust" rho |w_l| g_l / |g_l|. Under a schedule the first update that runs refreshes the
    vertical part. A vertical part that is not finite or below 1e-6 of the gradient counts as zero.

    When it does not help: a large alpha (above 0.3) mostly adds stale noise. Under "trust" a tensor
    of zeros, such as LoRA's B at the start, is not perturbed.

    Attributes:
        rho: radius, weight-space L2 norm (per tensor under `layerwise`, relative to its weights
            under "trust"), or a schedule for it.
        k: updates from one refresh to the next.
        alpha: length of the reused part, relative to the gradient.
        layerwise: "none", or the radius of each tensor l: "unit" for rho, "trust" for rho |w_l|.
    """

    stateful = True
    paper = "Liu et al., CVPR 2022, arXiv 2203.02714"
    passes = "1 + 1/k (1.2)"
    memory = "2"
    use = "most of SAM's gain at little more than the plain Trainer's time, if memory allows"

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    k: int = field(
        default=5,
        metadata={"help": "updates between refreshes", "low": 1, "whole": True, "grid": (2, 5, 10)},
    )
    alpha: float = field(
        default=0.1,
        metadata={"help": "length of the reused part", "low": 0.0, "grid": (0.05, 0.1, 0.3, 0.7)},
    )
    layerwise: str = field(
        default="none",
        metadata={"help": "radius per tensor", "choices": ("none", "unit", "trust")},
    )

    def update(self, at: Landscape) -> Vector:
        """Return SAM's update and keep its vertical part, or add that part to the gradient here."""
        done = int(self.state.number("updates", 0))
        self.state["updates"] = done + 1
        vertical = self.state.vector("vertical") if done % int(self.k) else None
        return self._refresh(at) if vertical is None else self._reuse(vertical, at)

    def _refresh(self, at: Landscape) -> Vector:
        self.state.pop("vertical", None)  # it would be one more copy during the passes
        here = at.ascent(self)
        with at.perturbed(self._direction()(at.perturbable(here).clone(), at)):
            there = at.gradient()
        square = here.norm().square()
        # Where |here| is 0 there is nothing to project on, and 0 / 0 must not enter the state.
        share = torch.where(square > 0, there.dot(here) / square, torch.zeros_like(square))
        length = there.norm()
        vertical = here.mul_(-share).add_(there)
        size = vertical.norm()
        # A difference of nearly equal vectors is rounding, which alpha would scale up.
        vertical.mul_((size > NEGLIGIBLE * length).to(size.dtype))
        self.state["vertical"] = vertical.where_(torch.isfinite(size))
        return there

    def _reuse(self, vertical: Vector, at: Landscape) -> Vector:
        here, size = at.gradient(), vertical.norm()
        scale = torch.where(size > 0, self.alpha * here.norm() / size, torch.zeros_like(size))
        return here.add_(vertical, scale)

    def _direction(self) -> Direction:
        if self.layerwise == "none":
            return radius(self.rho)
        return layer_radius(self.rho, self.layerwise)
