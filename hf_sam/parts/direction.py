# SPDX-License-Identifier: Apache-2.0
"""Along what to perturb: parts that turn a direction into another, one after the other.

Each takes `(v, at)`, a direction whose storage it may reuse, and the Landscape; each returns a
direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape
from ..vector import Vector, pieces
from .base import Part


@dataclass
class Direction(Part):
    """A part of the ascent: `direction(v, at)` returns the next direction and may reuse v's
    storage.
    """

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction that follows from v."""
        raise NotImplementedError


@dataclass(init=False)
class chain(Direction):
    """Directions one after the other, in the order in which the paper applies them."""

    parts: tuple[Direction, ...]

    def __init__(self, *parts: Direction) -> None:
        self.parts = parts

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return the direction after all parts."""
        for part in self.parts:
            v = part(v, at)
        return v


NEGLIGIBLE = 1e-6
"""A difference below this share of its terms is rounding, not a direction."""


@dataclass
class minus_average(Direction):
    """The gradient minus `sigma` times its running average: Friendly SAM's direction.

    ::

        m <- decay m + (1 - decay) v   (m = v at first use)
        v <- v - sigma m               (v itself at first use)

    State: the average m (1 P), and whether it has started. A non-finite v changes neither. A
    parameter without a gradient counts as zero in m and stays without a direction. A difference
    below 1e-6 of the gradient is rounding and becomes zero: a gradient that never changes has no
    noise to follow.
    """

    stateful = True

    sigma: float = field(default=1.0, metadata={"help": "share of the average taken off", "low": 0})
    decay: float = field(
        default=0.9, metadata={"help": "decay of the average", "low": 0, "high": 1}
    )

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return v minus its average, in v's storage."""
        size = v.norm()
        ok = torch.isfinite(size)
        started = self.state.get("started")
        if started is None:
            started = torch.zeros_like(ok)
        assert isinstance(started, Tensor)
        average = self._average(v)
        weight = torch.where(started, torch.full_like(size, 1 - self.decay), 1.0)
        sigma = torch.where(started, torch.full_like(size, self.sigma), 0.0)
        for m, g in zip(average, v, strict=True):
            if m is not None:
                for part in pieces(m) if g is None else pieces(m, g):
                    _step(*part, ok=ok, weight=weight, sigma=sigma)
        self.state.update(average=average, started=started | ok)
        norm = v.changed().norm()
        return v.mul_((norm > NEGLIGIBLE * size).to(norm.dtype))

    def _average(self, v: Vector) -> Vector:
        """Return the average so far, with zeros where a gradient appears for the first time."""
        before = self.state.get("average", [None] * len(v))
        assert not isinstance(before, (int, float, Tensor))
        return Vector(
            (torch.zeros_like(g) if m is None and g is not None else m)
            for m, g in zip(before, v, strict=True)
        )


def _step(m: Tensor, g: Tensor | None = None, *, ok: Tensor, weight: Tensor, sigma: Tensor) -> None:
    """Move m by `weight` towards g where `ok`, then take sigma m off g; all on the device."""
    ok, weight, sigma = (t.to(m.device) for t in (ok, weight, sigma))
    towards = torch.zeros_like(m) if g is None else g
    torch.where(ok, torch.lerp(m, towards, weight.to(m.dtype)), m, out=m)
    if g is not None:
        g.sub_(m * sigma)
