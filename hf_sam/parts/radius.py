# SPDX-License-Identifier: Apache-2.0
"""Radii of perturbations, and schedules for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..landscape import Landscape
from ..sums import Sums, or_zero, usable
from ..sweeps import Scratch, sweep
from ..vector import Scalar, Vector
from .base import Part
from .direction import Direction


@dataclass
class RhoSchedule(Part):
    """A radius that changes over the run: `schedule(at, norm)` returns rho for this update.

    The argument `norm` is the `()` norm of the direction that will be scaled.
    """

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        raise NotImplementedError


@dataclass
class linear(RhoSchedule):
    """A radius that goes linearly from `start` to `end` over the run."""

    start: float = field(metadata={"low": 0.0})
    end: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return self.start + (self.end - self.start) * at.progress.fraction


@dataclass
class cosine(RhoSchedule):
    """A radius that goes from `start` to `end` along half a cosine over the run."""

    start: float = field(metadata={"low": 0.0})
    end: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return (
            self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.progress.fraction)) / 2
        )


@dataclass
class lr(RhoSchedule):
    """The radius `rho`, multiplied by the learning rate's share of its maximum.

    This is GSAM's schedule with a minimum of zero.
    """

    rho: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update."""
        return self.rho * at.progress.lr_ratio


NO_CAP = (
    " (without RHO_MAX, the radius would grow without bound on a plateau, where the gradient "
    "vanishes, and keep the training there: give the largest radius that you would use, such as "
    "0.1)"
)


@dataclass
class budget(RhoSchedule):
    """The radius at which the loss rises by the share `c` of itself, to first order.

    It is min(c loss / |g|, rho_max). Neither the loss's scale nor the model's size changes the
    relative rise. On a plateau, where the gradient vanishes and the loss does not, only `rho_max`
    bounds the radius.
    """

    hint: ClassVar[str] = NO_CAP

    c: float = field(metadata={"low": 0.0})
    rho_max: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update as a `()` tensor."""
        # The loss's absolute value, as a loss below zero would give a negative radius.
        rise = self.c * at.mean_loss().to(norm).abs() / norm
        return rise.clamp(max=self.rho_max)


@dataclass
class loss(RhoSchedule):
    """The radius at which the loss rises by `sigma`, to first order: LE-SAM, arXiv 2605.10183.

    It is min(sigma / |g|, rho_max). In the last share `anneal` of the run, sigma falls to zero
    along half a cosine; the paper's vision settings are 0.5, 0.5 and 0.2.
    """

    hint: ClassVar[str] = NO_CAP

    sigma: float = field(metadata={"low": 0.0})
    rho_max: float = field(metadata={"low": 0.0})
    anneal: float = field(default=0.0, metadata={"low": 0.0, "high": 1.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return rho for this update as a `()` tensor."""
        left = 1 - at.progress.fraction
        late = left < self.anneal
        share = (1 - math.cos(math.pi * left / self.anneal)) / 2 if late else 1.0
        return (share * self.sigma / norm).clamp(max=self.rho_max)


@dataclass
class relative(RhoSchedule):
    """A radius for each tensor l by itself, of the length r |w_l|.

    The largest stable radius of all weights together falls with a model's width, and what is left
    perturbs the last layer alone; a radius relative to each layer's weights transfers from narrow
    models to wide ones (arXiv 2411.00075). A tensor of zeros is not perturbed.
    """

    r: float = field(metadata={"low": 0.0})

    def __call__(self, at: Landscape, norm: Tensor) -> Scalar:
        """Return the radius in units of each tensor's norm."""
        return self.r


Rho = float | RhoSchedule
SCHEDULES: dict[str, type[RhoSchedule]] = {
    "linear": linear,
    "cosine": cosine,
    "lr": lr,
    "budget": budget,
    "loss": loss,
    "relative": relative,
}


def to_length_(v: Vector, rho: Rho, norm: Tensor, at: Landscape) -> Vector:
    """Scale v in place by rho / norm, or by zero (see `factor`); `relative`: tensor by tensor."""
    if isinstance(rho, relative):
        return layer_radius(rho)(v, at)
    return v.mul_(factor(rho, norm, at))


def factor(rho: Rho, norm: Tensor, at: Landscape) -> Tensor:
    """Return rho / norm, `()`.

    If the norm is zero or not finite, the factor is zero and the perturbation counts as skipped.
    """
    # The device decides, so that the host does not wait for the gradient.
    at.skip(~usable(norm))
    length = rho(at, norm) if isinstance(rho, RhoSchedule) else rho
    return or_zero(length / norm)


@dataclass
class radius(Direction):
    """SAM's perturbation rho v / |v|, with one norm over all perturbed parameters."""

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v, scaled to the length rho."""
        return to_length_(v, self.rho, v.norm(), at)


@dataclass
class layer_radius(Direction):
    """A radius per tensor, as in Look-LayerSAM.

    ::

        unit    rho v_l / |v_l|
        trust   rho |w_l| v_l / |v_l|

    A tensor is not perturbed if its direction is zero or, under `trust`, if its weights are zero.
    A `relative` radius implies `trust`.
    """

    rho: Rho = field(default=0.05, metadata={"help": "radius per tensor", "low": 0.0})
    kind: str = field(
        default="unit", metadata={"help": "same or relative length", "choices": ("unit", "trust")}
    )

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v, in which every tensor is scaled to a length of its own."""
        norm = v.norm()
        at.skip(~usable(norm))
        rho = self.rho(at, norm) if isinstance(self.rho, RhoSchedule) else self.rho
        sizes: Any = v.norms()
        trust = self.kind == "trust" or isinstance(self.rho, relative)
        weights: Any = at.weights().norms() if trust else None
        for i in v.present:
            length = rho if weights is None else rho * weights[i]
            zero = torch.zeros_like(sizes[i])
            v[i].mul_(torch.where(sizes[i] > 0, length / sizes[i], zero).to(v[i].device))  # type: ignore[union-attr]
        return v.changed()  # the entries were written to directly, so the norm is unknown now


@dataclass
class adaptive_radius(Direction):
    """ASAM's perturbation rho T^2 v / |T v|.

    T is |w| + eta for parameters whose name contains "weight", and 1 for all others.
    """

    rho: Rho = field(default=0.5, metadata={"help": "radius, dimensionless", "low": 0.0})
    eta: float = field(default=0.01, metadata={"help": "added to |w|", "low": 0.0})

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return rho T^2 v / |T v|."""
        names = at.names or ["weight"] * len(v)
        scaled = v.on(["weight" in name for name in names])  # the parameters for which T is not 1
        sums, scratch = Sums(len(v)), Scratch()
        for group in sweep(scaled.tensors, at.weights().tensors):
            mine, weights = group.pieces
            t = scratch("abs", weights)
            torch._foreach_add_(t, self.eta)
            torch._foreach_mul_(mine, t)
            sums.add_squares(group.places, mine)  # of T v, between the two factors of T^2
            torch._foreach_mul_(mine, t)
        for group in sweep(v.on(["weight" not in name for name in names]).tensors):
            sums.add_squares(group.places, *group.pieces)
        norm = v.placement.total(sums).sqrt()
        return to_length_(v.changed(), self.rho, norm, at)
