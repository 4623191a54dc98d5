# SPDX-License-Identifier: Apache-2.0
"""Stepping aside in weight space and coming back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from ..vector import CHUNK, Scalar, Vector, inner, slices

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Size of a number in bytes -> integers of that size."""


@dataclass(frozen=True)
class Support:
    """Where a tensor may differ from zero.

    Attributes:
        mask: bool, of the tensor's shape.
        counts: how many are true in each `CHUNK` elements, so that nobody has to ask the device.
    """

    mask: Tensor
    counts: list[int]

    @classmethod
    def of(cls, mask: Tensor) -> Support:
        """Return the support with its counts, by one look at the device."""
        cut = mask.flatten().split(CHUNK)
        return cls(mask, torch.stack([one.count_nonzero() for one in cut]).tolist())

    def slices(self, *tensors: Tensor) -> Iterator[tuple[Tensor, int, list[Tensor]]]:
        """Yield (mask, its count, the tensors' elements), `CHUNK` elements at a time."""
        flat = [t.flatten().split(CHUNK) for t in (self.mask, *tensors)]
        for count, mask, *elements in zip(self.counts, *flat, strict=True):
            yield mask, count, elements


class Masked(Vector):
    """A vector whose entries are zero outside of supports, where the weights then need no snapshot.

    Whatever may put something else there makes it an ordinary vector.

    Attributes:
        supports: per parameter, where the entry may differ from zero; None: everywhere.
    """

    __slots__ = ("supports",)

    def __init__(self, vector: Vector, supports: Sequence[Support | None]) -> None:
        super().__init__(vector, vector.placement)
        self.supports: Sequence[Support | None] | None = supports

    def add_(self, other: Vector, scale: Scalar = 1.0) -> Vector:
        """Add in place as `Vector.add_` does."""
        self.supports = None
        return super().add_(other, scale)

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """Put another vector in place as `Vector.where_` does."""
        self.supports = None
        return super().where_(ok, other)

    def changed(self) -> Vector:
        """Forget the norm, and that the entries are zero outside of the supports."""
        self.supports = None
        return super().changed()


class Slice(NamedTuple):
    """A run of a parameter's elements, with the perturbation and then the snapshot of them.

    Attributes:
        param: the whole parameter.
        start: index of the first element in it.
        now: the elements, a view.
        eps: the perturbation's elements, a view.
    """

    param: Tensor
    start: int
    now: Tensor
    eps: Tensor


class Perturbation:
    """A context in which `w + eps` stands in the parameters; leaving it restores `w` bitwise,
    whatever happened.

    The tensors of `eps` are consumed: each becomes the snapshot of its parameter, so that stepping
    aside needs no storage beyond `eps` itself. A tensor with a support is exchanged for a snapshot
    of the elements inside it, and no other element moves. Where `ok` (a `()` bool tensor) is false
    the parameters stay as they are; this needs no host synchronisation. Parameters with a `None`
    entry are never touched.

    Attributes:
        along: a vector whose inner product with the step is measured on the way back, when all
            weights pass through the processor's cache anyway.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        eps: Sequence[Tensor | None],
        ok: Tensor,
        supports: Sequence[Support | None] | None = None,
    ) -> None:
        self._params = params
        entries = zip(params, eps, supports or [None] * len(eps), strict=True)
        self._entering = [(p, e, s) for p, e, s in entries if e is not None]
        self._ok = ok
        self._saved: list[Slice] = []
        self._saved_inside: list[tuple[Tensor, Support, list[Tensor]]] = []
        self._dots: dict[int, list[Tensor]] = {}
        self.along: Vector | None = None

    @property
    def displacement_dot(self) -> list[Tensor | None]:
        """Per parameter the `()` inner product of the step taken (as rounded) with `along`'s entry,
        once the context is left.
        """
        dots = (self._dots.get(id(p)) for p in self._params)
        return [torch.stack(parts).sum() if parts else None for parts in dots]

    @torch.no_grad()
    def __enter__(self) -> Perturbation:
        try:
            entering, self._entering = self._entering, []
            whole, inside = [], []
            for p, e, s in entering:
                # A flat view of the parameter has to exist.
                if s is None or not p.is_contiguous():
                    whole.append((p, e))
                else:
                    inside.append((p, e, s))
            self._enter_whole(whole)
            for p, e, s in inside:
                self._enter_inside(p, e, s)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _enter_whole(self, entering: list[tuple[Tensor, Tensor]]) -> None:
        scratch = torch.empty(0)
        kept = cache(lambda device, size: _all_bits(self._ok.to(device), size))
        for run in _runs(one for p, e in entering for one in _slices(p, e)):
            weights, eps = [one.now for one in run], [one.eps for one in run]
            scratch = _at_least(sum(w.numel() for w in weights), weights[0], scratch)
            moved = _shaped(scratch, weights)
            for e, w, there in zip(eps, weights, moved, strict=True):
                bits = kept(e.device, e.element_size())
                e.view(bits.dtype).bitwise_and_(bits)  # zeros, also for NaN, unless ok
                torch.add(e, w, out=there)
            torch._foreach_copy_(eps, weights)
            self._saved.extend(run)
            torch._foreach_copy_(weights, moved)

    def _enter_inside(self, param: Tensor, eps: Tensor, support: Support) -> None:
        ok, saved = self._ok.to(param.device), list[Tensor]()
        self._saved_inside.append((param, support, saved))
        for mask, count, (w, e) in support.slices(param, eps):
            saved.append(_gather(w, mask, count))
            torch.where(mask & ok, (e + w).to(w.dtype), w, out=w)

    @torch.no_grad()
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # Whoever stepped along that vector has consumed it.
            known = error is None and self.along is not None and not self.along.handed_over
            self._return(self.along if known and self.along is not None else [])
        except BaseException:  # the weights come back, whatever kept them from being measured
            self._return([])
            raise
        finally:
            self._saved, self._saved_inside = [], []

    def _return(self, along: Sequence[Tensor | None]) -> None:
        """Put the snapshot back; may be done twice."""
        entries = {id(p): e for p, e in zip(self._params, along, strict=False) if e is not None}
        self._dots = {key: [] for key in entries}
        for run in _runs(self._saved):
            for one in run:
                self._measure(entries, one.param, one.start, one.now, one.eps)
            torch._foreach_copy_([one.now for one in run], [one.eps for one in run])
        for param, support, saved in self._saved_inside:
            # Fewer were saved than there are ones if entering failed on the way.
            both = zip(saved, support.slices(param), strict=False)
            for i, (values, (mask, _, (now,))) in enumerate(both):
                before = now.masked_scatter(mask, values)
                self._measure(entries, param, i * CHUNK, now, before)
                now.copy_(before)

    def _measure(
        self, entries: dict[int, Tensor], param: Tensor, start: int, now: Tensor, before: Tensor
    ) -> None:
        """Note the elements' part of the inner product, `CHUNK` elements at a time."""
        if id(param) not in entries:
            return
        entry = entries[id(param)].flatten()[start : start + now.numel()]
        flat = (t.flatten().split(CHUNK) for t in (now, before, entry))
        for there, here, along in zip(*flat, strict=True):
            self._dots[id(param)].append(inner(there - here, along))


def _all_bits(ok: Tensor, size: int) -> Tensor:
    """Return the `()` integer of `size` bytes whose bits are all one if the `()` bool tensor is
    true, and all zero if not: on a CPU `torch.where` takes several times as long.
    """
    return ok.to(BITS[size]).neg()


def _gather(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the values (count,) where the mask (N,) is true, without waiting for a GPU."""
    if values.device.type == "cuda":
        return values[torch.nonzero_static(mask, size=count).view(-1)]
    return values.masked_select(mask)


def _at_least(size: int, like: Tensor, scratch: Tensor) -> Tensor:
    """Return the scratch (N,), or new one if it is too small or of another kind: fresh memory costs
    a CPU more than the arithmetic.
    """
    if scratch.numel() >= size and (scratch.device, scratch.dtype) == (like.device, like.dtype):
        return scratch
    return like.new_empty(size)


def _shaped(scratch: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of the scratch in the shapes of some tensors, one after the other."""
    sizes = [t.numel() for t in like]
    flat = scratch[: sum(sizes)].split(sizes)
    return [part.view(t.shape) for part, t in zip(flat, like, strict=True)]


def _slices(param: Tensor, eps: Tensor) -> Iterator[Slice]:
    """Yield a parameter and its perturbation in slices that stay in cache."""
    start = 0
    for now, here in slices(param, eps):
        yield Slice(param, start, now, here)
        start += now.numel()


def _runs(slices: Iterable[Slice]) -> Iterator[list[Slice]]:
    """Yield runs of slices of one device and dtype with at most `CHUNK` elements, a larger slice
    alone.
    """
    run: list[Slice] = []
    size = 0
    for one in slices:
        kind = (one.now.device, one.now.dtype)
        if run and (
            kind != (run[0].now.device, run[0].now.dtype) or size + one.now.numel() > CHUNK
        ):
            yield run
            run, size = [], 0
        run.append(one)
        size += one.now.numel()
    if run:
        yield run
