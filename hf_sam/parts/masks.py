# SPDX-License-Identifier: Apache-2.0
"""Which weights to perturb: masks that follow the data, and the choice of the largest scores."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..landscape import Landscape, Masked, Support
from ..vector import WHOLE, Shards, StateValue, Vector, add_up, pieces
from .direction import Direction

Scores = list[Tensor | None]
Masks = list[Tensor | None]
LARGEST = 0x7F7FFFFF
"""The bits of the largest float32 number."""


@dataclass
class Mask(Direction):
    """Keeps a direction where a mask says so: `v <- v * mask`, after scaling as in Sparse SAM's
    papers.

    The mask covers all weights that may be perturbed, those without a gradient too. It is renewed
    at first use and then every `update_interval` updates. State: the mask (bool, one byte per
    element; whole tensors one byte each), and the update of its last renewal. A renewal at a
    non-finite gradient is left out, unless there is no mask yet.

    Attributes:
        sparsity: share of the weights that is not perturbed.
        update_interval: updates between renewals; None is one epoch.
    """

    stateful = True

    sparsity: float = field(
        default=0.5, metadata={"help": "share of weights not perturbed", "low": 0, "high": 1}
    )
    update_interval: int | None = field(
        default=None,
        metadata={"help": "updates per mask; one epoch", "low": 1, "whole": True, "optional": True},
    )

    def __call__(self, v: Vector, at: Landscape) -> Vector:
        """Return v with zeros, or None for whole tensors, where the mask is off."""
        mask = self.state.get("mask")
        if mask is None or self._due(at, v):
            before = None if mask is None else list(mask)  # type: ignore[arg-type]
            mask = Vector(self.renew(_filled(v, at), at, before))
            self.state.update(mask=mask, renewed=at.progress.step)
            self.__dict__.pop("_looked", None)
        assert isinstance(mask, Vector)
        return self._apply(v, mask)

    def load_state_dict(self, state: dict[str, StateValue]) -> None:
        """Take over a saved mask."""
        self.__dict__.pop("_looked", None)
        super().load_state_dict(state)

    def _due(self, at: Landscape, v: Vector) -> bool:
        interval = self.update_interval or at.progress.per_epoch or at.progress.total
        due = at.progress.step - int(self.state["renewed"]) >= interval  # type: ignore[arg-type]
        return due and bool(torch.isfinite(v.norm()))

    def _apply(self, v: Vector, mask: Vector) -> Vector:
        if "_looked" not in self.__dict__:  # at the device, once per renewal
            whole = [m is None or m.ndim > 0 or bool(m) for m in mask]
            supports = [Support.of(m) if m is not None and self._gathers(m) else None for m in mask]
            self.__dict__["_looked"] = whole, supports
        whole, supports = self.__dict__["_looked"]
        for entry, m in zip(v, mask, strict=True):
            if entry is not None and m is not None and m.ndim:
                entry.mul_(m)
        return Masked(v.changed().keep(whole), supports)

    def _gathers(self, mask: Tensor) -> bool:
        """Whether only the weights inside a mask are saved while they are perturbed.

        On CPU that takes about 18 ns per weight, where a whole snapshot takes 2: too much beside
        the passes of a small batch.
        """
        return mask.ndim > 0 and mask.device.type == "cuda"

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return the next mask for the entries of v, zero where the gradient is missing: bool, of
        the entry's shape, or `()` for a whole tensor.
        """
        raise NotImplementedError


@dataclass
class fisher_mask(Mask):
    """The weights with the largest empirical Fisher information: mean squared gradients of single
    examples.

    The examples are drawn by the update's generator, equally on all ranks, and pass through the
    model without dropout and with the running statistics; norm statistics and random streams stay
    as they are.

    Attributes:
        sparsity: share of the weights that is not perturbed.
        update_interval: updates between renewals; None is one epoch.
        fisher_samples: examples per renewal.
        pattern: `unstructured`; `structured`, whole tensors by their mean score; or `n:m`, the n
            largest of every m consecutive weights along the input dimension.
    """

    draws = True

    fisher_samples: int = field(
        default=128, metadata={"help": "examples per mask", "low": 1, "whole": True}
    )
    pattern: str = field(
        default="unstructured", metadata={"help": "unstructured, structured, or n:m such as 2:4"}
    )

    def __post_init__(self) -> None:
        """Check the pattern, too."""
        super().__post_init__()
        if self.pattern in ("unstructured", "structured"):
            return
        n, m = _n_of_m(self.pattern)
        if not math.isclose(self.sparsity, 1 - n / m):
            raise ValueError(
                f"pattern={self.pattern!r} keeps {n} of {m} weights, which is sparsity "
                f"{1 - n / m:g}, but sparsity="
                f"{self.sparsity:g}; give both alike"
            )

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return the mask of the largest Fisher scores."""
        scores, shards = self._fisher(v, at), v.shards
        if self.pattern == "unstructured":
            return largest(scores, live_count(scores, self.sparsity, shards), shards)
        if self.pattern == "structured":
            return whole_tensors(scores, live_count(scores, self.sparsity, shards), shards)
        n, m = _n_of_m(self.pattern)
        return [None if s is None else n_of_m(s, n, m) for s in scores]

    def _gathers(self, mask: Tensor) -> bool:
        """Under n:m also on CPU."""
        return mask.ndim > 0 and (self.pattern != "unstructured" or super()._gathers(mask))

    def _fisher(self, v: Vector, at: Landscape) -> Scores:
        scores: Scores = [
            None if t is None else torch.zeros_like(t, dtype=torch.float32) for t in v
        ]
        for gradient in at.example_gradients(int(self.fisher_samples)):
            _add_squares(scores, gradient)
            del gradient  # or it would live on during the next example's pass
        return list(at.together(Vector(scores)))


@dataclass
class dynamic_mask(Mask):
    """A mask that drops its least and grows as many new weights at every renewal; the count never
    changes.

    The first mask is random. At the share x of the run the share `drop_rate (1 + cos(pi x)) / 2` of
    the live weights is exchanged.

    Attributes:
        sparsity: share of the weights that is not perturbed.
        update_interval: updates between renewals; None is one epoch.
        drop_rate: share of the live weights that the first renewal exchanges.
        drop: what is kept: the largest `gradient` or `weight`.
        growth: what is grown: `random` weights or those of the largest `gradient`.
    """

    drop_rate: float = field(
        default=0.5, metadata={"help": "share exchanged at first", "low": 0, "high": 1}
    )
    drop: str = field(
        default="gradient", metadata={"help": "score to keep", "choices": ("gradient", "weight")}
    )
    growth: str = field(
        default="random", metadata={"help": "score to grow", "choices": ("random", "gradient")}
    )

    def renew(self, v: Vector, at: Landscape, before: Masks | None) -> Masks:
        """Return a random mask at first, then the old one with some weights exchanged."""
        shards = v.shards
        if before is None:
            return largest(_random(v, at), live_count(list(v), self.sparsity, shards), shards)
        live = _total([None if m is None else torch.count_nonzero(m) for m in before], shards)
        dead = _total(_sizes(before), shards) - live
        rate = self.drop_rate * (1 + math.cos(math.pi * at.progress.fraction)) / 2
        exchanged = min(int(live * rate), dead)
        weights = at.weights().keep([t is not None for t in v])
        kept_by = _magnitudes(v if self.drop == "gradient" else weights)
        keep = largest(_only(kept_by, before, True), live - exchanged, shards)
        del kept_by  # one set of scores at a time
        grown_by = _random(v, at) if self.growth == "random" else _magnitudes(v)
        grow = largest(_only(grown_by, before, False), exchanged, shards)
        return [
            None if a is None or b is None else a.logical_or_(b)
            for a, b in zip(keep, grow, strict=True)
        ]


def _add_squares(scores: Scores, gradient: Vector) -> None:
    for score, g in zip(scores, gradient, strict=True):
        if score is not None and g is not None:
            score.addcmul_(g, g)


def live_count(scores: Scores, sparsity: float, shards: Shards = WHOLE) -> int:
    """Return how many weights are perturbed: N - ceil(sparsity N)."""
    total = _total(_sizes(scores), shards)
    return total - math.ceil(sparsity * total - 1e-9 * total)


def largest(scores: Scores, count: int, shards: Shards = WHOLE) -> Masks:
    """Return masks of the `count` largest scores over all tensors together, the first ones among
    equals.

    The threshold is found by bisection over the non-negative float32 numbers, from counts, so that
    nothing is sorted, and processes that hold shards exchange nothing but counts. Negative scores
    are never chosen; non-finite ones count as zero.
    """
    found = [None if s is None else _finite(s.float()) for s in scores]
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        reached = [None if s is None else torch.count_nonzero(s >= _float(middle)) for s in found]
        if _total(reached, shards) >= count:
            low = middle
        else:
            high = middle - 1
    return _above(found, _float(low), count, shards)


def _above(scores: Scores, threshold: float, count: int, shards: Shards) -> Masks:
    """Return masks of `count` scores: those above the threshold, and the first that equal it."""
    masks = [None if s is None else s > threshold for s in scores]
    above = [None if m is None else torch.count_nonzero(m) for m in masks]
    ties = [None if s is None else torch.count_nonzero(s == threshold) for s in scores]
    missing = count - _total(above, shards)
    parts = zip(masks, scores, shards.sums(ties), shards.before(ties), strict=True)
    for mask, s, everywhere, before in parts:
        if mask is None or s is None or everywhere is None or before is None or missing <= 0:
            continue
        tie = s == threshold
        if (n := int(everywhere)) > missing:
            tie = _first(tie, missing - int(before))
        missing -= n
        mask |= tie
    return masks


def _first(mask: Tensor, count: int) -> Tensor:
    """Return the mask of the first `count` elements that are on; 8 bytes of scratch for each of
    `CHUNK` elements.
    """
    flat = mask.flatten()
    for (piece,) in pieces(flat):
        found = int(piece.count_nonzero())
        if found > count:
            piece &= piece.cumsum(0) <= count
        count = max(count - found, 0)
    return flat.view(mask.shape)


def _total(parts: list[Tensor | None], shards: Shards) -> int:
    """Return the sum of whole numbers over all tensors and shards."""
    return int(add_up(shards.sums(parts)))


def _sizes(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return how many elements this process holds of each tensor, as `()` tensors."""
    return [None if t is None else torch.tensor(t.numel(), device=t.device) for t in tensors]


def _finite(scores: Tensor) -> Tensor:
    """Return the scores, in the same storage if all are finite, else with zeros in their place."""
    return scores if bool(scores.sum().isfinite()) else scores.nan_to_num(0.0, 0.0, 0.0)


def _float(bits: int) -> float:
    """Return the float32 number of these bits; in the order of the bits, if not negative."""
    return float(struct.unpack("f", struct.pack("I", bits))[0])


def whole_tensors(scores: Scores, count: int, shards: Shards = WHOLE) -> Masks:
    """Return `()` masks of whole tensors, by mean score from the largest down until `count`
    weights are on.
    """
    finite = [None if s is None else s.nan_to_num(0.0, 0.0, 0.0).sum() for s in scores]
    sums: list[Any] = shards.sums(finite)
    sizes: list[Any] = shards.sums(_sizes(scores))
    means = {i: float(sums[i] / sizes[i]) for i, s in enumerate(scores) if s is not None}
    masks: Masks = [
        None if s is None else torch.zeros((), dtype=torch.bool, device=s.device) for s in scores
    ]
    on = 0
    for i in sorted(means, key=means.__getitem__, reverse=True):
        if on >= count:
            break
        masks[i] = torch.ones_like(masks[i])  # type: ignore[arg-type]
        on += int(sizes[i])
    return masks


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Return the mask of the n largest of every m consecutive scores along the input dimension (the
    second).

    A vector is on as a whole. Where the dimension is not a multiple of m the last group is shorter.
    """
    if scores.ndim < 2:
        return torch.ones((), dtype=torch.bool, device=scores.device)
    rows = scores.transpose(1, -1).contiguous()
    length = rows.shape[-1]
    padded = torch.nn.functional.pad(rows, (0, -length % m), value=-1.0)
    groups = padded.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(n, dim=1).indices, True)
    kept = mask.view(padded.shape)[..., :length]
    return kept.transpose(1, -1).contiguous()


def _n_of_m(pattern: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(
            f"pattern={pattern!r} is not one of unstructured, structured, or n:m with 1 <= n <= m "
            f"such as 2:4"
        )
    return int(found[1]), int(found[2])


def _filled(v: Vector, at: Landscape) -> Vector:
    """Return v with zeros where a parameter that may be perturbed has no entry."""
    covered = [chosen and p.requires_grad for p, chosen in zip(at.params, at.where, strict=True)]
    tensors = (
        (torch.zeros_like(w) if t is None and w is not None and covers else t)
        for t, w, covers in zip(v, at.weights(), covered, strict=True)
    )
    return Vector(tensors, v.shards)


def _random(v: Vector, at: Landscape) -> Scores:
    """Return uniform scores by the update's generator, drawn for whole tensors on every process."""
    draw: Any = at.generator
    return [
        None
        if t is None
        else at.part(i, torch.rand(at.params[i].shape, generator=draw)).to(t.device)
        for i, t in enumerate(v)
    ]


def _magnitudes(v: Sequence[Tensor | None]) -> Scores:
    return [None if t is None else t.abs() for t in v]


def _only(scores: Scores, mask: Masks, on: bool) -> Scores:
    """Return the scores, in float32 and in place, with -1 where the mask is not `on`."""
    for i, (s, m) in enumerate(zip(scores, mask, strict=True)):
        scores[i] = None if s is None or m is None else s.float().masked_fill_(m != on, -1.0)
    return scores
