# SPDX-License-Identifier: Apache-2.0
"""Along what to perturb: parts that turn a direction into another, one after the other.

Each takes `(v, at)`, a direction whose storage it consumes, and the Landscape; each returns a
direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape
from ..vector import Vector, slices
from .base import Part


@dataclass
class Direction(Part):
    """A part of the ascent: `direction(v, at)` returns the next direction, in v's storage.

    Subclasses write `apply_(v, at)`, which may do with v what it likes.
    """

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v, which is consumed: use the result instead."""
        return self.apply_(v.moved(), at)

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v, whose storage is free to use."""
        raise NotImplementedError


@dataclass(init=False)
class chain(Direction):
    """Directions one after the other, in the order in which the paper applies them."""

    parts: tuple[Direction, ...]

    def __init__(self, *parts: Direction) -> None:
        self.parts = parts

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction after all parts."""
        for part in self.parts:
            v = part(v, at)
        return v


NEGLIGIBLE = 1e-6
"""A difference below this share of its terms is rounding, not a direction."""


@dataclass
class RunningAverage(Part):
    """A running average of the vectors that it sees, one per update.

    ::

        m <- decay m + (1 - decay) v   (m = v at first use)

    State: the average m (1 P), and whether it has started. A non-finite v changes neither. An entry
    that is missing counts as zero in m.

    Attributes:
        decay: decay of the average, per update.
    """

    stateful = True

    decay: float = field(
        default=0.9,
        metadata={"help": "decay of the average, per update", "low": 0.0, "high": 1.0},
    )

    def _begin(self, v: Vector) -> tuple[Vector, Tensor, Tensor]:
        """Return the average so far, with zeros for new entries, and two `()` bools on the device.

        They say whether the average had started before v, and whether v is finite.
        """
        finite = torch.isfinite(v.norm())
        started = self.state.tensor("started")
        if started is None:
            started = torch.zeros_like(finite)
        before = self.state.vector("average") or [None] * len(v)
        average = Vector(
            (
                torch.zeros_like(g) if m is None and g is not None else m
                for m, g in zip(before, v, strict=True)
            ),
            v.placement,
        )
        self.state.update(average=average, started=started | finite)
        return average, started, finite


@dataclass
class MinusAverage(RunningAverage):
    """A vector minus `sigma` times its running average: the noise of one batch.

    ::

        m <- decay m + (1 - decay) v   (m = v at first use)
        v <- v - sigma m               (v itself at first use)

    A parameter without a gradient stays without a direction. A difference below 1e-6 of the
    gradient is rounding and becomes zero: a gradient that never changes has no noise to follow.

    Attributes:
        sigma: share of the average that is taken off.
    """

    sigma: float = field(
        default=1.0, metadata={"help": "share of the average taken off", "low": 0.0}
    )

    def noise_(self, v: Vector) -> Vector:
        """Return v minus its average, in v's storage."""
        size = v.norm()
        average, started, ok = self._begin(v)
        weight = torch.where(started, torch.full_like(size, 1 - self.decay), 1.0)
        sigma = torch.where(started, torch.full_like(size, self.sigma), 0.0)
        for m, g in zip(average, v, strict=True):
            if m is not None:
                for run in slices(m) if g is None else slices(m, g):
                    _step(*run, ok=ok, weight=weight, sigma=sigma)
        norm = v.changed().norm()
        return v.mul_((norm > NEGLIGIBLE * size).to(norm.dtype))


@dataclass
class minus_average(MinusAverage, Direction):
    """Friendly SAM's direction: the gradient minus its running average."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v minus its average."""
        return self.noise_(v)


def _step(m: Tensor, g: Tensor | None = None, *, ok: Tensor, weight: Tensor, sigma: Tensor) -> None:
    """Move m by `weight` towards g where `ok`, then take sigma m off g; all on the device."""
    ok, weight, sigma = (t.to(m.device) for t in (ok, weight, sigma))
    towards = torch.zeros_like(m) if g is None else g
    torch.where(ok, torch.lerp(m, towards, weight.to(m.dtype)), m, out=m)
    if g is not None:
        g.sub_(m * sigma)
