# SPDX-License-Identifier: Apache-2.0
"""Masks that choose which weights are perturbed, as the data suggest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..landscape import Landscape, Masked, Support
from ..sweeps import Scratch, sweep
from ..vector import Placement, StateValue, Vector
from .base import Part
from .direction import Direction
from .scores import (
    Masks,
    Scores,
    largest,
    live_count,
    magnitudes,
    n_of_m,
    sizes,
    total,
    whole_tensors,
)

RANDOM = 1 << 15
"""How many different scores there are by chance."""


@dataclass
class Mask(Part):
    """A mask on a direction, `v <- v * mask`; Sparse SAM applies it after scaling to the radius.

    The mask covers all weights that may be perturbed, including those without a gradient. It is
    made at first use and renewed every `update_interval` updates. State: the mask (bool, one byte
    per element, or one byte per tensor where a mask chooses whole tensors), and the update of its
    last renewal. A renewal is left out while the gradient is not finite, unless there is no mask
    yet.

    Attributes:
        sparsity: share of the weights that is not perturbed; 0 perturbs all, 1 none.
        update_interval: updates between renewals of the mask; None is one epoch.
    """

    stateful = True

    sparsity: float = field(
        default=0.5,
        metadata={
            "help": "share of weights not perturbed",
            "low": 0.0,
            "high": 1.0,
            "grid": (0.2, 0.5, 0.8, 0.9),
        },
    )
    update_interval: int | None = field(
        default=None,
        metadata={
            "help": "updates between masks; default one epoch",
            "low": 1,
            "whole": True,
            "optional": True,
        },
    )

    def masked_(self, v: Vector, at: Landscape) -> Vector:
        """Return v with zeros (None for whole tensors) where the mask is off, in v's storage."""
        mask = self.state.vector("mask")
        if mask is None or (self._due(at) and bool(torch.isfinite(v.norm()))):
            self._renew(_filled(v, at), at)
        return self._apply_(v)

    def _renew(self, v: Vector, at: Landscape) -> None:
        before = self.state.vector("mask")
        # No sum over processes is taken of a mask, so it needs no placement.
        mask = Vector(self.renew(v, at, None if before is None else list(before)))
        self.state.update(mask=mask, renewed=at.progress.step)
        self.__dict__.pop("_looked", None)

    def load_state_dict(self, state: dict[str, StateValue]) -> None:
        """Replace the mask by a saved one."""
        self.__dict__.pop("_looked", None)  # the counts of the previous mask
        super().load_state_dict(state)

    def realign_state(self, places: Sequence[int | None], placement: Placement) -> None:
        """Forget the mask, because the set of weights to choose from has changed."""
        self.load_state_dict({})

    def _due(self, at: Landscape) -> bool:
        interval = self.update_interval or at.progress.per_epoch or at.progress.total
        return at.progress.step - self.state.number("renewed", 0) >= interval

    def _apply_(self, v: Vector) -> Vector:
        mask: Sequence[Tensor | None] = self.state.vector("mask") or []
        if "_looked" not in self.__dict__:  # the host waits for the device once per renewal
            whole = [m is None or m.ndim > 0 or bool(m) for m in mask]
            supports = Support.of([m if m is not None and m.ndim else None for m in mask])
            self.__dict__["_looked"] = whole, supports
        whole, supports = self.__dict__["_looked"]
        scratch = Scratch()
        for group in sweep(v.tensors, [m if m is not None and m.ndim else None for m in mask]):
            mine, masks = group.pieces
            # foreach products of a float and a bool tensor would take the slow path.
            factors = scratch.like(mine)
            torch._foreach_copy_(factors, masks)
            torch._foreach_mul_(mine, factors)
        return Masked(v.changed().on(whole), supports)

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return the next mask for the entries of v, which are zero where there is no gradient.

        Each entry is a bool tensor of the same shape, or of shape `()` for a whole tensor.
        """
        raise NotImplementedError


@dataclass
class FisherMask(Mask):
    """A mask of the weights with the largest empirical Fisher information.

    The score of a weight is the mean of its squared gradients over single examples. The examples
    are drawn by the update's generator, equally on all processes. They pass through the model
    without dropout and with the running statistics, and leave norm statistics and random
    generators as they are.

    Attributes:
        fisher_samples: the number of examples per mask.
        pattern: `unstructured`; `structured`, which chooses whole tensors by their mean score; or
            `n:m`, which chooses the n largest of every m consecutive weights along the input
            dimension.
    """

    fisher_samples: int = field(
        default=128, metadata={"help": "examples per mask", "low": 1, "whole": True}
    )
    pattern: str = field(
        default="unstructured", metadata={"help": "unstructured, structured, or n:m such as 2:4"}
    )

    def __post_init__(self) -> None:
        """Check that the pattern keeps as many weights as the sparsity does."""
        super().__post_init__()
        if self.pattern in ("unstructured", "structured"):
            return
        n, m = _n_of_m(self.pattern)
        if not math.isclose(self.sparsity, 1 - n / m):
            raise ValueError(
                f"pattern={self.pattern!r} keeps {n} of {m} weights, which is sparsity "
                f"{1 - n / m:g}, but sparsity={self.sparsity:g}; give both alike"
            )

    def renew_early(self, at: Landscape) -> None:
        """Renew the mask if a renewal is due, before a gradient takes up memory.

        This mask does not depend on the gradient, so one that is not finite does not matter.
        """
        if self.state.vector("mask") is None or self._due(at):
            self._renew(at.weights().on(_covered(at)), at)

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return the mask of the largest Fisher scores."""
        scores, placement = self._fisher(v, at), v.placement
        if self.pattern == "unstructured":
            return largest(scores, live_count(scores, self.sparsity, placement), placement)
        if self.pattern == "structured":
            return whole_tensors(scores, live_count(scores, self.sparsity, placement), placement)
        n, m = _n_of_m(self.pattern)
        return [None if s is None else n_of_m(s, n, m) for s in scores]

    def _fisher(self, v: Vector, at: Landscape) -> Scores:
        scores: Scores = [
            None if t is None else torch.zeros_like(t, dtype=torch.float32) for t in v
        ]
        for gradient in at.example_gradients(int(self.fisher_samples)):
            _add_squares(scores, gradient)
            del gradient  # it would take up memory during the next example's pass
        return list(at.average_(Vector(scores)))


@dataclass
class DynamicMask(Mask):
    """A mask that exchanges its weights with the smallest scores for others at every renewal.

    The first mask is random, and the number of its weights never changes. At the share x of the
    run, the share `drop_rate (1 + cos(pi x)) / 2` of the live weights is exchanged.

    Attributes:
        drop_rate: the share of the live weights that the first renewal exchanges.
        drop: the score by which live weights stay: `gradient` or `weight`.
        growth: the score by which other weights are added: `random` or `gradient`.
    """

    drop_rate: float = field(
        default=0.5, metadata={"help": "share exchanged at first", "low": 0.0, "high": 1.0}
    )
    drop: str = field(
        default="gradient", metadata={"help": "score to keep", "choices": ("gradient", "weight")}
    )
    growth: str = field(
        default="random", metadata={"help": "score to grow", "choices": ("random", "gradient")}
    )

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return a random mask at first, and then the previous one with some weights exchanged."""
        placement = v.placement
        if before is None:
            return largest(_random(v, at), live_count(list(v), self.sparsity, placement), placement)
        live = total([None if m is None else torch.count_nonzero(m) for m in before], placement)
        dead = total(sizes(before), placement) - live
        rate = self.drop_rate * (1 + math.cos(math.pi * at.progress.fraction)) / 2
        exchanged = min(int(live * rate), dead)  # so that the number of live weights stays
        weights = at.weights().on(v.selection)
        kept_by = list(v if self.drop == "gradient" else weights)
        keep = largest(magnitudes(kept_by, before, True), live - exchanged, placement)
        grown_by = _random(v, at) if self.growth == "random" else list(v)
        grow = largest(magnitudes(grown_by, before, False), exchanged, placement)
        # Kept and grown weights are disjoint: one comes from the old mask, one from its complement.
        return [
            None if a is None or b is None else a.logical_or_(b)
            for a, b in zip(keep, grow, strict=True)
        ]


@dataclass
class fisher_mask(FisherMask, Direction):
    """Sparse SAM's Fisher mask, as a direction of its own."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v with zeros where the mask is off."""
        return self.masked_(v, at)


@dataclass
class dynamic_mask(DynamicMask, Direction):
    """Sparse SAM's dynamic mask, as a direction of its own."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        """Return v with zeros where the mask is off."""
        return self.masked_(v, at)


def _add_squares(scores: Scores, gradient: Vector) -> None:
    for score, g in zip(scores, gradient, strict=True):
        if score is not None and g is not None:
            score.addcmul_(g, g)


def _n_of_m(pattern: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(
            f"pattern={pattern!r} is not one of unstructured, structured, or n:m with 1 <= n <= m "
            "such as 2:4"
        )
    return int(match[1]), int(match[2])


def _filled(v: Vector, at: Landscape) -> Vector:
    """Return v with zeros for the parameters that may be perturbed and have no entry."""
    tensors = (
        (torch.zeros_like(w) if t is None and w is not None and covers else t)
        for t, w, covers in zip(v, at.weights(), _covered(at), strict=True)
    )
    return Vector(tensors, v.placement)


def _covered(at: Landscape) -> list[bool]:
    """Return the selection of the parameters that a mask covers: those that may be perturbed."""
    return [chosen and p.requires_grad for p, chosen in zip(at.params, at.where, strict=True)]


def _random(v: Vector, at: Landscape) -> list[Tensor | None]:
    """Return uniform scores from the update's generator, as whole numbers of 15 bits.

    Every process draws for whole tensors and keeps its rows, so that all processes agree.
    """
    draw: Any = at.generator
    drawn: list[Tensor | None] = [None] * len(v)
    for i in v.present:
        scores = torch.rand(at.params[i].shape, generator=draw).mul_(RANDOM)
        # Half the memory of a float: which of equal scores comes first matters to nobody.
        drawn[i] = at.rows(i, scores.to(torch.int16)).to(at.params[i].device)
    return drawn
