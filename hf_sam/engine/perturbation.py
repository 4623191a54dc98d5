# SPDX-License-Identifier: Apache-2.0
"""Stepping aside in weight space and coming back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements moved at a time: what stays in cache, and the bound on scratch memory."""

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
        pieces = mask.flatten().split(CHUNK)
        return cls(mask, torch.stack([piece.count_nonzero() for piece in pieces]).tolist())

    def pieces(self, *tensors: Tensor) -> Iterator[tuple[Tensor, int, list[Tensor]]]:
        """Yield (mask, its count, the tensors' elements), `CHUNK` elements at a time."""
        flat = [t.flatten().split(CHUNK) for t in (self.mask, *tensors)]
        for count, mask, *elements in zip(self.counts, *flat, strict=True):
            yield mask, count, elements


class Piece(NamedTuple):
    """Some elements of a parameter, with the perturbation and then the snapshot of them.

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
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        eps: Sequence[Tensor | None],
        ok: Tensor,
        supports: Sequence[Support | None] | None = None,
    ) -> None:
        self._place = {id(p): i for i, p in enumerate(params)}
        entries = zip(params, eps, supports or [None] * len(eps), strict=True)
        self._entering = [(p, e, s) for p, e, s in entries if e is not None]
        self._ok = ok
        self._saved: list[Piece] = []
        self._saved_inside: list[tuple[Tensor, Support, list[Tensor]]] = []

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
        for run in _runs(piece for p, e in entering for piece in _pieces(p, e)):
            weights, eps = [piece.now for piece in run], [piece.eps for piece in run]
            scratch = _at_least(sum(w.numel() for w in weights), weights[0], scratch)
            moved = _shaped(scratch, weights)
            for e in eps:
                _zero_unless(self._ok.to(e.device), e)
            torch._foreach_add_(eps, weights)
            torch._foreach_copy_(moved, eps)
            torch._foreach_copy_(eps, weights)
            self._saved.extend(run)
            torch._foreach_copy_(weights, moved)

    def _enter_inside(self, param: Tensor, eps: Tensor, support: Support) -> None:
        ok, saved = self._ok.to(param.device), list[Tensor]()
        self._saved_inside.append((param, support, saved))
        for mask, count, (w, e) in support.pieces(param, eps):
            saved.append(_gather(w, mask, count))
            torch.where(mask & ok, (e + w).to(w.dtype), w, out=w)

    @torch.no_grad()
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in _runs(self._saved):
            torch._foreach_copy_([piece.now for piece in run], [piece.eps for piece in run])
        for param, support, saved in self._saved_inside:
            # Fewer were saved than there are pieces if entering failed on the way.
            for values, (mask, _, (w,)) in zip(saved, support.pieces(param), strict=False):
                w.masked_scatter_(mask, values)
        self._saved, self._saved_inside = [], []

    @torch.no_grad()
    def displacement_dot(self, vector: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return per parameter the `()` inner product of the step taken (as rounded) with
        `vector`'s entry.
        """
        place = self._place
        steps: dict[int, list[Tensor]] = {}
        for param, start, now, before in self._saved:
            entry = vector[place[id(param)]]
            if entry is not None:
                entry = entry.flatten()[start : start + now.numel()]
                flat = [t.flatten().split(CHUNK) for t in (now, before, entry)]
                steps.setdefault(place[id(param)], []).append(_dot_steps(zip(*flat, strict=True)))
        for param, support, saved in self._saved_inside:
            entry = vector[place[id(param)]]
            if entry is not None:
                pieces = zip(saved, support.pieces(param, entry), strict=True)
                dot = _dot_steps(
                    (w, w.masked_scatter(mask, values), e) for values, (mask, _, (w, e)) in pieces
                )
                steps[place[id(param)]] = [dot]
        return [torch.stack(steps[i]).sum() if i in steps else None for i in range(len(vector))]


def _zero_unless(ok: Tensor, values: Tensor) -> None:
    """Put zeros in place, also of what is not finite, unless the `()` bool tensor is true.

    Done by bits: on a CPU `torch.where` takes several times as long.
    """
    bits = BITS[values.element_size()]
    values.view(bits).bitwise_and_(ok.to(bits).neg())


def _dot_steps(pieces: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """Return the `()` sum of (now - before) entry over pieces (now, before, entry)."""
    total = None
    for now, before, entry in pieces:
        wide = torch.promote_types(now.dtype, torch.float32)
        part = torch.dot((now - before).to(wide), entry.to(wide))
        total = part if total is None else total + part
    assert total is not None
    return total


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


def _pieces(param: Tensor, eps: Tensor) -> Iterator[Piece]:
    """Yield a tensor as it is, or in flat pieces of `CHUNK` elements where it is larger and they
    exist.
    """
    if param.numel() <= CHUNK or not (param.is_contiguous() and eps.is_contiguous()):
        yield Piece(param, 0, param, eps)
        return
    flat = zip(param.view(-1).split(CHUNK), eps.view(-1).split(CHUNK), strict=True)
    for i, (now, here) in enumerate(flat):
        yield Piece(param, i * CHUNK, now, here)


def _runs(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield runs of pieces of one device and dtype with at most `CHUNK` elements, a larger piece
    alone.
    """
    run: list[Piece] = []
    size = 0
    for piece in pieces:
        kind = (piece.now.device, piece.now.dtype)
        if run and (
            kind != (run[0].now.device, run[0].now.dtype) or size + piece.now.numel() > CHUNK
        ):
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.now.numel()
    if run:
        yield run
