# SPDX-License-Identifier: Apache-2.0
"""How far to perturb: radii, and schedules for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..landscape import Landscape
from ..sums import Sums
from ..sweeps import Scratch, sweep
from ..vector import Scalar, Vector
from .base import Part
from .direction import Direction


@dataclass
class RhoSchedule(Part):
    """A radius that changes over the run: `schedule(at, norm)` returns rho for this update.

    `norm` is the `()` norm of the direction that will be scaled.
    """

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        raise NotImplementedError


@dataclass
class linear(RhoSchedule):
    """From `start` to `end`, linearly over the run."""

    start: float = field(metadata={"low": 0.0})
    end: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return self.start + (self.end - self.start) * at.progress.fraction


@dataclass
class cosine(RhoSchedule):
    """From `start` to `end` along half a cosine over the run."""

    start: float = field(metadata={"low": 0.0})
    end: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return (
            self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.progress.fraction)) / 2
        )


@dataclass
class lr(RhoSchedule):
    """`rho` times the learning rate's share of its maximum (GSAM's schedule with a minimum of
    zero).
    """

    rho: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return self.rho * at.progress.lr_ratio


@dataclass
class budget(RhoSchedule):
    """The radius at which the loss rises, to first order, by the share `c` of itself: min(c loss /
    |g|, rho_max).

    Scale-free: neither the loss's scale nor the model's size changes the relative rise. Where the
    gradient vanishes and the loss does not, on a plateau, it grows without bound and keeps the
    training there: give `rho_max`.
    """

    c: float = field(metadata={"low": 0.0})
    rho_max: float | None = field(default=None, metadata={"low": 0.0, "optional": True})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update as a `()` tensor."""
        rise = self.c * at.mean_loss().to(norm).abs() / norm  # also of a loss below zero
        return rise if self.rho_max is None else rise.clamp(max=self.rho_max)


Rho = float | RhoSchedule
SCHEDULES: dict[str, type[RhoSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "lr": lr,
    "budget": budget,
}


def to_length_(v: Vector, rho: Rho, norm: Tensor, at: Landscape) -> Vector:
    """Scale v in place by rho / norm.

    A norm that is zero or not finite scales by zero, and is noted as skipped.
    """
    ok = torch.isfinite(norm) & (norm > 0)
    at.skip(~ok)
    length = rho(at, norm) if isinstance(rho, RhoSchedule) else rho
    return v.mul_(torch.where(ok, length / norm, torch.zeros_like(norm)))


@dataclass
class radius(Direction):
    """rho v / |v|: SAM's perturbation for v = gradient, one norm over all perturbed parameters."""

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v with length rho."""
        return to_length_(v, self.rho, v.norm(), at)


@dataclass
class layer_radius(Direction):
    """A radius per tensor, as in Look-LayerSAM.

    ::

        unit    rho v_l / |v_l|
        trust   rho |w_l| v_l / |v_l|

    A tensor whose direction (or, under `trust`, whose weights) are zero stays where it is.
    """

    rho: Rho = field(default=0.05, metadata={"help": "radius per tensor", "low": 0.0})
    kind: str = field(
        default="unit", metadata={"help": "same or relative length", "choices": ("unit", "trust")}
    )

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v with a length per tensor."""
        norm = v.norm()
        at.skip(~(torch.isfinite(norm) & (norm > 0)))
        rho = self.rho(at, norm) if isinstance(self.rho, RhoSchedule) else self.rho
        sizes: Any = v.norms()
        weights: Any = at.weights().norms() if self.kind == "trust" else None
        for i in v.present:
            length = rho if weights is None else rho * weights[i]
            zero = torch.zeros_like(sizes[i])
            v[i].mul_(torch.where(sizes[i] > 0, length / sizes[i], zero).to(v[i].device))  # type: ignore[union-attr]
        return v.changed()


@dataclass
class adaptive_radius(Direction):
    """rho T^2 v / |T v| with T = |w| + eta for parameters named `*weight*` and T = 1 for others:
    ASAM's perturbation.
    """

    rho: Rho = field(default=0.5, metadata={"help": "radius, dimensionless", "low": 0.0})
    eta: float = field(default=0.01, metadata={"help": "added to |w|", "low": 0.0})

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the scaled direction."""
        names = at.names or ["weight"] * len(v)
        scaled = v.on(["weight" in name for name in names])  # where T is not 1
        sums, scratch = Sums(len(v)), Scratch()
        for group in sweep(scaled.tensors, at.weights().tensors):
            mine, weights = group.pieces
            t = scratch("abs", weights)
            torch._foreach_add_(t, self.eta)
            torch._foreach_mul_(mine, t)
            sums.add_squares(group.places, mine)
            torch._foreach_mul_(mine, t)
        for group in sweep(v.on(["weight" not in name for name in names]).tensors):
            sums.add_squares(group.places, *group.pieces)
        norm = v.placement.total(sums).sqrt()
        return to_length_(v.changed(), self.rho, norm, at)
