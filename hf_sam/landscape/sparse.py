# SPDX-License-Identifier: Apache-2.0
"""Perturbations that are zero outside of masks, so that only weights inside need a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..sweeps import Group, Scratch, policy
from ..vector import Scalar, Vector
from .rounding import Nearest
from .snapshot import OnDevice, beside

Scale = Callable[[list[Tensor]], None]


@dataclass(frozen=True)
class Support:
    """The elements at which a tensor may differ from zero.

    Attributes:
        mask: a bool tensor of the tensor's shape.
        count: how many elements are true, so that the host need not wait for the device; -1 on a
            device where counting again costs nothing.
    """

    mask: Tensor
    count: int = -1

    @classmethod
    def of(cls, masks: Sequence[Tensor | None]) -> list[Support | None]:
        """Return the supports of some masks with their counts."""
        # One transfer for all masks: each one by itself would wait for the device.
        asked = [m for m in masks if m is not None and not policy(m.device).eager]
        counts = iter(
            torch.stack([m.count_nonzero().cpu() for m in asked]).tolist() if asked else []
        )
        return [
            None if m is None else cls(m) if policy(m.device).eager else cls(m, next(counts))
            for m in masks
        ]


class Masked(Vector):
    """A vector whose entries are zero outside of supports, so that no snapshot is needed there.

    Any operation that may put something else there makes it an ordinary vector.

    Attributes:
        supports: for each parameter, the elements at which the entry may differ from zero; None
            means all of them.
    """

    __slots__ = ("supports",)

    def __init__(self, vector: Vector, supports: Sequence[Support | None]) -> None:
        super().__init__(vector, vector.placement)
        self.supports: Sequence[Support | None] | None = supports

    def add_(self, other: Vector, scale: Scalar = 1.0) -> Vector:
        """Add another vector in place, as `Vector.add_` does."""
        self.supports = None
        return super().add_(other, scale)

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """Replace the entries unless `ok` is true, as `Vector.where_` does."""
        self.supports = None
        return super().where_(ok, other)

    def changed(self) -> Vector:
        """Forget the norm and the supports, because the tensors were written to."""
        self.supports = None
        return super().changed()


class Inside:
    """A snapshot of the weights of a group that lie inside of masks, while they are perturbed.

    Args:
        group: pieces of the weights and of their masks.
        counts: how many weights lie inside of each piece's mask; see `Support`.
    """

    def __init__(self, group: Group, counts: Sequence[int]) -> None:
        self._group = group
        self._count = -1 if min(counts) < 0 else sum(counts)
        self._saved: Tensor | None = None

    def step(self, eps: list[Tensor], scale_: Scale, rounding: Nearest, snapshot: OnDevice) -> None:
        """Add `eps` to the weights inside, after `scale_` has scaled it in place."""
        weights, index = _Flat(self._group.pieces[0]), self._index()
        moved = _Flat(eps).tensor.index_select(0, index)
        scale_([moved])  # only what is inside, which is less work than scaling all of eps
        before = weights.tensor.index_select(0, index)
        there = rounding.sums_at(self._group, index, moved, before)
        # Saved before the weights move, so that an exception in the copy can be undone.
        self._saved = snapshot.take(before)
        weights.put(index, there)

    def restore(self) -> None:
        """Restore the weights, unless they have been restored already."""
        if self._saved is not None:
            weights = _Flat(self._group.pieces[0])
            weights.put(self._index(), beside([self._saved], [weights.tensor])[0])
            self._saved = None

    def _index(self) -> Tensor:
        """Return the positions in the group of the weights inside, (count,)."""
        mask = _Flat(self._group.pieces[1]).tensor
        if self._count < 0:  # on a CPU, numpy takes a tenth of torch's time
            return torch.from_numpy(np.flatnonzero(mask.numpy()))
        # The size is known, so that the host does not wait for the device as `nonzero` does.
        return torch.nonzero_static(mask, size=self._count).view(-1)


class _Flat:
    """The elements of some tensors in a row: a view of a single tensor, or a copy of several."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._copied = len(tensors) > 1 or not tensors[0].is_contiguous()
        if self._copied:
            scratch = Scratch()
            self._parts = scratch.like(tensors)
            torch._foreach_copy_(self._parts, tensors)
            self.tensor = scratch.flat(sum(t.numel() for t in tensors), tensors[0])
        else:
            self.tensor = tensors[0].view(-1)

    def put(self, index: Tensor, values: Tensor) -> None:
        """Write values at the given positions into the tensors."""
        self.tensor.scatter_(0, index, values)
        if self._copied:
            torch._foreach_copy_(self._tensors, self._parts)
