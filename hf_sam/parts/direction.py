# SPDX-License-Identifier: Apache-2.0
"""Directions: parts that turn the gradient, step by step, into the perturbation.

Each is called with `(v, at)`: a direction, whose storage it consumes, and the Landscape. Each
returns the next direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape
from ..sweeps import Scratch, number, sweep, zeros
from ..vector import Vector
from .base import Part


@dataclass
class Direction(Part):
    """A part of the ascent: `direction(v, at)` returns the next direction, in v's storage.

    Subclasses implement `apply_(v, at)`, which owns v and may overwrite it.

    Class attributes:
        needs_gradient: whether the direction depends on v, so that a pass has to compute it.
    """

    needs_gradient = True

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v. It consumes v, so use the result instead."""
        # The caller's vector is emptied, so that using it later fails instead of being wrong.
        return self.apply_(v.moved(), at)

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v, whose storage may be overwritten."""
        raise NotImplementedError


@dataclass(init=False)
class chain(Direction):
    """A direction that applies other directions one after the other."""

    parts: tuple[Direction, ...]

    def __init__(self, *parts: Direction) -> None:
        self.parts = parts

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        """Whether no part replaces v by a direction that does not depend on it."""
        return all(part.needs_gradient for part in self.parts)

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v after all parts."""
        for part in self.parts:
            v = part(v, at)
        return v


NEGLIGIBLE = 1e-6
"""A difference that is smaller than this share of its terms is rounding and gives no direction."""


@dataclass
class RunningAverage(Part):
    """A running average of the vectors that it sees, one per update.

    ::

        m <- (1 - weight) m + weight v   (m = v at first use)

    State: the average m (1 P), and whether it has started. A v that is not finite changes neither.
    A missing entry of v counts as zero in m.
    """

    stateful = True

    def _begin(self, v: Vector) -> tuple[Vector, Tensor, Tensor]:
        """Return the average so far, with zeros for new entries, and two `()` bools on the device.

        The first is whether the average had started before v, the second whether v is finite.
        """
        finite = torch.isfinite(v.norm())
        started = self.state.tensor("started")
        if started is None:
            started = torch.zeros_like(finite)
        average = Vector(self.state.vector("average") or [None] * len(v), v.placement)
        new = zeros([g if m is None else None for m, g in zip(average, v, strict=True)])
        average = Vector(
            (m if zero is None else zero for m, zero in zip(average, new, strict=True)), v.placement
        )
        # The state holds this very vector: the caller moves the average in place.
        self.state.update(average=average, started=started | finite)
        return average, started, finite


@dataclass
class MinusAverage(RunningAverage):
    """A vector minus `sigma` times its running average: the noise of one batch.

    ::

        m <- decay m + (1 - decay) v   (m = v at first use)
        v <- v - sigma m               (v itself at first use)

    A parameter without a gradient stays without a direction. A difference below 1e-6 of the
    gradient is rounding and becomes zero, because a gradient that never changes has no noise.

    Attributes:
        sigma: share of the average that is subtracted.
        decay: decay of the average, per update.
    """

    sigma: float = field(
        default=1.0,
        metadata={"help": "share of the average taken off", "low": 0.0, "grid": (0.5, 1.0)},
    )
    decay: float = field(
        default=0.9,
        metadata={
            "help": "decay of the average, per update",
            "low": 0.0,
            "high": 1.0,
            "grid": (0.6, 0.9, 0.95),
        },
    )

    def noise_(self, v: Vector) -> Vector:
        """Return v minus its average, in v's storage."""
        size = v.norm()
        average, started, ok = self._begin(v)
        # At first use m = v and nothing is subtracted; a v that is not finite leaves m unchanged.
        weight = torch.where(started, torch.full_like(size, 1 - self.decay), 1.0) * ok
        sigma = torch.where(started, torch.full_like(size, self.sigma), 0.0)
        scratch = Scratch()
        v.where_(ok)  # 0 * NaN is NaN, which would stay in the average for good
        for group in sweep(average.tensors, v.tensors):
            m, g = group.pieces
            _towards_(m, scratch("sub", g, m), weight)
            # After the average has moved: it already includes this gradient, as in the paper.
            torch._foreach_sub_(g, scratch("mul", m, number(sigma, m[0])))
        _fade_(average.on([g is None for g in v]), weight, scratch)
        norm = v.changed().norm()
        noisy = (norm > NEGLIGIBLE * size).to(norm.dtype)
        # NaN makes the radius skip an update whose gradient was not finite.
        return v.mul_(torch.where(ok, noisy, torch.full_like(noisy, math.nan)))


@dataclass
class AverageDirection(RunningAverage):
    """The running average itself: a direction with less of one batch's noise.

    ::

        m <- (1 - theta) m + theta v   (m = v at first use)
        v <- m

    A parameter without a gradient stays without a direction.

    Attributes:
        theta: weight of this update's gradient in the average; 1 means no averaging at all.
    """

    theta: float = field(
        default=0.9,
        metadata={
            "help": "weight of the new gradient",
            "low": 0.0,
            "high": 1.0,
            "grid": (0.2, 0.4, 0.9),
        },
    )

    def average_(self, v: Vector) -> Vector:
        """Return the average in v's storage, or zero if v is not finite."""
        average, started, ok = self._begin(v)
        weight = torch.where(started, torch.full_like(v.norm(), self.theta), 1.0) * ok
        scratch = Scratch()
        v.where_(ok)  # 0 * NaN is NaN, which would stay in the average for good
        for group in sweep(average.tensors, v.tensors):
            m, g = group.pieces
            _towards_(m, scratch("sub", g, m), weight)
            torch._foreach_copy_(g, m)  # the perturbation will consume g, never the state
        _fade_(average.on([g is None for g in v]), weight, scratch)
        return v.changed().mul_(ok.to(v.norm().dtype))


@dataclass
class minus_average(MinusAverage, Direction):
    """Friendly SAM's direction: the gradient minus its running average."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v minus its average."""
        return self.noise_(v)


@dataclass
class average(AverageDirection, Direction):
    """VaSSO's direction: the running average of the gradient."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the running average of v."""
        return self.average_(v)


def _fade_(missing: Vector, weight: Tensor, scratch: Scratch) -> None:
    """Move those entries of an average that have no gradient now towards zero."""
    for group in sweep(missing.tensors):
        (m,) = group.pieces
        _towards_(m, scratch("neg", m), weight)


def _towards_(m: list[Tensor], way: list[Tensor], share: Tensor) -> None:
    """Move m in place by a share of the way. It consumes `way`."""
    torch._foreach_mul_(way, number(share, way[0]))
    torch._foreach_add_(m, way)
