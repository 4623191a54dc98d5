# SPDX-License-Identifier: Apache-2.0
"""Walks over many weights, in groups of bounded size, with few operations for each group.

A CPU walks over slices that stay in its cache, so that each weight is read from memory once. Any
other device takes whole tensors, many at a time, so that it launches few kernels. Both do the same
arithmetic with every weight and give the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Entries = Sequence[Tensor | None]
"""One tensor per parameter, or `None` for a parameter without a tensor."""

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype for each size of a number in bytes."""

DEVICE, DTYPE = operator.attrgetter("device"), operator.attrgetter("dtype")


@dataclass(frozen=True)
class Policy:
    """How a device walks over many tensors.

    Attributes:
        bytes: the most memory that the pieces of one vector take up in a group; larger tensors are
            cut. It bounds scratch memory, too.
        eager: whether an operation costs no kernel launch, so that a sweep finishes each group
            while it is in the cache.
    """

    bytes: int
    eager: bool


CACHED = Policy(1 << 21, eager=True)
GROUPED = Policy(1 << 28, eager=False)

_forced: Policy | None = None


def policy(device: torch.device) -> Policy:
    """Return the policy by which tensors on a device are walked over."""
    return _forced or (CACHED if device.type == "cpu" else GROUPED)


@contextmanager
def forced(one: Policy) -> Iterator[None]:
    """Use one policy for every device inside the block.

    Example:
        >>> with forced(GROUPED):
        ...     policy(torch.device("cpu")).eager
        False
    """
    global _forced
    before, _forced = _forced, one
    try:
        yield
    finally:
        _forced = before


@dataclass
class Group:
    """Pieces of tensors, of one device and dtype, that a sweep yields together.

    Attributes:
        places: for each piece, the index of its parameter.
        starts: for each piece, the position of its first element in the tensor; None if the piece
            is the whole tensor.
        pieces: for each vector of the sweep, its pieces.
    """

    places: list[int]
    starts: list[int | None]
    pieces: list[list[Tensor]]

    @classmethod
    def of_cuts(cls, cuts: list[tuple[int, int | None, int]], vectors: Any) -> Group:
        """Return the pieces (parameter, start, length) of vectors; a start of None is a whole."""
        # Views, so that in-place operations on the pieces change the tensors themselves.
        pieces = [
            [v[i] if start is None else v[i].view(-1)[start : start + n] for i, start, n in cuts]
            for v in vectors
        ]
        return cls([i for i, _, _ in cuts], [start for _, start, _ in cuts], pieces)

    def of(self, entries: Entries) -> list[Tensor]:
        """Return the same pieces of other tensors, none of which is None."""
        pieces = []
        for place, start, like in zip(self.places, self.starts, self.pieces[0], strict=True):
            entry: Any = entries[place]
            if start is not None:
                entry = entry.flatten()[start : start + like.numel()]
            pieces.append(entry)
        return pieces

    def where(self, entries: Entries) -> Group:
        """Return the group without the pieces of parameters that have no entry."""
        if all(entries[place] is not None for place in self.places):
            return self
        chosen = [k for k, place in enumerate(self.places) if entries[place] is not None]
        return Group(
            [self.places[k] for k in chosen],
            [self.starts[k] for k in chosen],
            [[pieces[k] for k in chosen] for pieces in self.pieces],
        )


def by_kind(*vectors: Entries) -> Iterator[list[int]]:
    """Yield the indices at which all vectors have an entry, grouped by device and dtypes.

    Foreach kernels are fast for lists of tensors of one device and dtype only.
    """
    places = list(range(len(vectors[0])))
    for vector in vectors:
        places = [i for i in places if vector[i] is not None]
    # Read in C, for there may be hundreds of tensors.
    device = list(map(DEVICE, [vectors[0][i] for i in places]))
    dtypes = [list(map(DTYPE, [vector[i] for i in places])) for vector in vectors]
    if all(len(set(one)) == 1 for one in (device, *dtypes)):
        yield places
        return
    kinds = list(zip(device, *dtypes, strict=True))
    for kind in dict.fromkeys(kinds):
        yield [i for i, its in zip(places, kinds, strict=True) if its == kind]


def sweep(*vectors: Entries, parts: int = 0, whole: bool = False, size: int = 0) -> Iterator[Group]:
    """Yield all elements of the parameters for which every vector has an entry, group by group.

    Args:
        vectors: sequences of entries, whose shapes are equal.
        parts: the least number of groups, about; 0 for no such limit. An eager policy ignores it.
        whole: whether tensors are never cut. An eager policy ignores it.
        size: the bytes that an element counts at least, because it takes up that much in scratch.
    """
    for places in by_kind(*vectors):
        first: list[Any] = [vector[places[0]] for vector in vectors]
        each = max(size, *(t.element_size() for t in first))
        mine = policy(first[0].device)
        limit = mine.bytes // each
        # Cutting costs launches, and in a cache nothing is gained by filling up the rest.
        step = limit if mine.eager else min(CACHED.bytes // each, limit)
        if parts and not mine.eager:
            sizes: list[Any] = [vectors[0][i] for i in places]
            limit = min(limit, max(-(-sum(t.numel() for t in sizes) // parts), 1))
        step = 0 if whole and not mine.eager else min(step, limit)
        yield from _groups(places, vectors, limit, step)


def _groups(places: list[int], vectors: Any, limit: int, step: int) -> Iterator[Group]:
    """Yield groups of at most `limit` elements; a tensor without a flat view may be larger.

    Tensors are cut at multiples of `step` elements, or not at all if it is 0.
    """
    cuts, room = list[tuple[int, int | None, int]](), limit
    for i, n in zip(places, [vectors[0][i].numel() for i in places], strict=True):
        flat = n > room and step > 0 and all(vector[i].is_contiguous() for vector in vectors)
        start = 0
        while start < n:
            length = n - start
            # Cuts at multiples of `step` make both policies add up the same slices.
            if flat and length > room:
                length = max(room, 0) // step * step
            if length == 0 or (cuts and length > room):
                yield Group.of_cuts(cuts, vectors)
                cuts, room = [], limit
                continue
            cuts.append((i, None if length == n else start, length))
            start, room = start + length, room - length
    if cuts:
        yield Group.of_cuts(cuts, vectors)


class Scratch:
    """Memory for results of operations, each of which lives until the next call.

    On a CPU all results use the same memory, because fresh memory costs more than the arithmetic.

    Example:
        >>> Scratch()("mul", [torch.ones(2)], torch.tensor(3.0))
        [tensor([3., 3.])]
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def __call__(self, operation: str, tensors: list[Tensor], *others: Any) -> list[Tensor]:
        """Return the results of `torch.<operation>` for each of the tensors.

        Args:
            operation: the name of a function of torch.
            tensors: its first arguments, which are of one device and dtype.
            others: its other arguments: lists with one for each tensor, or a number or a `()`
                tensor for all of them.
        """
        # Many small tensors take up little memory, and Python's own time is what counts.
        if len(tensors) > 1 or not policy(tensors[0].device).eager:
            return list(getattr(torch, f"_foreach_{operation}")(tensors, *others))
        results, function = self.like(tensors), getattr(torch, operation)
        for k, result in enumerate(results):
            function(tensors[k], *(o[k] if isinstance(o, list) else o for o in others), out=result)
        return results

    def like(self, tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return memory for tensors of these shapes, in a row."""
        sizes = [t.numel() for t in tensors]
        flat = self.flat(sum(sizes), tensors[0], dtype)
        if len(sizes) == 1:
            return [flat.view(tensors[0].shape)]
        return [f.view(t.shape) for f, t in zip(flat.split(sizes), tensors, strict=True)]

    def flat(self, size: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return memory for (size,) elements on the device of a tensor."""
        kind = like.device, dtype or like.dtype
        # It only grows: the groups of a sweep have nearly the same size.
        if self._memory.numel() < size or (self._memory.device, self._memory.dtype) != kind:
            self._memory = torch.empty(size, device=kind[0], dtype=kind[1])
        return self._memory[:size]


def number(value: Any, like: Tensor) -> Any:
    """Return a factor in a form that foreach kernels accept for tensors such as `like`.

    It is on their device, and has their dtype if that loses nothing.
    """
    if not isinstance(value, Tensor):
        return value
    # Rounded to bfloat16, a factor would keep fewer than three digits.
    wide = like.dtype in (torch.float32, torch.float64)
    return value.to(like.device, like.dtype if wide else value.dtype)


class Gate:
    """Makes tensors zero unless a `()` bool tensor `ok` is true; the host need not wait for it.

    Example:
        >>> x = torch.tensor([float("nan"), 1.0])
        >>> Gate(torch.tensor(False)).pass_([x])
        >>> x
        tensor([0., 0.])
    """

    def __init__(self, ok: Tensor) -> None:
        self._ok = ok
        self._known: bool | None = None
        self._numbers: dict[Any, Tensor] = {}

    def pass_(self, tensors: list[Tensor]) -> None:
        """Make tensors of one device and dtype zero, including NaN, unless `ok` is true."""
        device, bits = tensors[0].device, BITS[tensors[0].element_size()]
        if policy(device).eager and self._ok.device.type == "cpu":
            self._known = bool(self._ok) if self._known is None else self._known
            if not self._known:  # there is nothing to wait for, and mostly nothing to do
                torch._foreach_zero_(tensors)
            return
        if (device, bits) not in self._numbers:
            self._numbers[device, bits] = self._ok.to(device, bits)
        one = self._numbers[device, bits]
        # On integer views: 0 * NaN is NaN.
        torch._foreach_mul_([t.view(bits) for t in tensors], one)


def copies(tensors: Entries) -> list[Tensor | None]:
    """Return copies of the entries."""
    new: list[Tensor | None] = [None] * len(tensors)
    for places in by_kind(tensors):
        mine: list[Any] = [tensors[i] for i in places]
        for i, copy in zip(places, cloned(mine), strict=True):
            new[i] = copy
    return new


def cloned(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of tensors of one device and dtype."""
    if policy(tensors[0].device).eager:
        return [t.clone() for t in tensors]
    new = [torch.empty_like(t) for t in tensors]
    torch._foreach_copy_(new, tensors)
    return new


def zeros(tensors: Entries) -> list[Tensor | None]:
    """Return a tensor of zeros for each entry, and None for each None."""
    new = [None if t is None else torch.empty_like(t) for t in tensors]
    for places in by_kind(new):
        mine: list[Any] = [new[i] for i in places]
        torch._foreach_zero_(mine)
    return new
