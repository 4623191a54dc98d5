# SPDX-License-Identifier: Apache-2.0
"""Directions from the gradients of earlier updates, which are known before the first pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..landscape import Landscape
from ..sweeps import Gate, Scratch, number, sweep, zeros
from ..vector import Vector
from .base import Part
from .direction import Direction


@dataclass
class LastGradient(Part):
    """The gradient that the last update handed to the optimizer.

    State: that gradient (1 P), from the method's first update on. During an update its storage
    becomes the snapshot of the weights, so that it takes up no further memory. After a gradient
    that was not finite it is zero.
    """

    stateful = True

    def earlier(self, at: Landscape) -> Vector | None:
        """Return the last gradient of what may be perturbed, and forget it; None at first use."""
        last = self.state.vector("last")
        self.state.pop("last", None)
        return None if last is None else last.on(at.where)

    def note(self, at: Landscape, update: Vector) -> None:
        """Keep a copy of the update, because the optimizer will use up its storage."""
        # A gate, as 0 * NaN is NaN. The update itself keeps it, so that loss scaling notices.
        self.state["last"] = update.clone().where_(torch.isfinite(update.norm()))


@dataclass
class Momentum(Part):
    """A momentum of the gradients that earlier updates handed to the optimizer.

    ::

        m <- decay m + u   after each update

    State: m (1 P), from the method's first update on. A u that is not finite changes nothing. A
    missing entry of u counts as zero in m.

    Attributes:
        decay: decay of the momentum, per update.
    """

    stateful = True

    decay: float = field(
        default=0.9,
        metadata={"help": "decay of the momentum, per update", "low": 0.0, "high": 1.0},
    )

    def earlier(self, at: Landscape) -> Vector | None:
        """Return a copy of the momentum of what may be perturbed; None at first use."""
        m = self.state.vector("momentum")
        return None if m is None else m.on(at.where).clone()

    def note(self, at: Landscape, update: Vector) -> None:
        """Add an update to the momentum."""
        ok = torch.isfinite(update.norm())
        before = self.state.vector("momentum") or [None] * len(update)
        new = zeros([u if m is None else None for m, u in zip(before, update, strict=True)])
        pairs = zip(before, new, strict=True)
        m = Vector((zero if old is None else old for old, zero in pairs), update.placement)
        kept = torch.where(ok, torch.full_like(update.norm(), self.decay), 1.0)
        gate, scratch = Gate(ok), Scratch()
        for group in sweep(m.tensors, update.tensors):
            mine, theirs = group.pieces
            added = scratch("mul", theirs, 1.0)
            gate.pass_(added)
            torch._foreach_mul_(mine, number(kept, mine[0]))
            torch._foreach_add_(mine, added)
        m.on([u is None for u in update]).mul_(kept).tensors  # noqa: B018
        self.state["momentum"] = m.changed()


@dataclass
class previous(LastGradient, Direction):
    """The last update's gradient as direction, whatever this one's is; nothing at first use."""

    needs_gradient = False

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the last update's gradient."""
        return _or_nothing(self.earlier(at), v)


@dataclass
class momentum(Momentum, Direction):
    """The momentum of earlier gradients as direction, whatever this one is; nothing at first use.

    Momentum-SAM perturbs against it: put `radius(rho)` behind it, and a sign.
    """

    needs_gradient = False

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return the momentum of earlier gradients."""
        return _or_nothing(self.earlier(at), v)


def _or_nothing(direction: Vector | None, v: Vector) -> Vector:
    return v.on([False] * len(v)) if direction is None else direction
