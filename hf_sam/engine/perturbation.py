# SPDX-License-Identifier: Apache-2.0
"""Stepping aside in weight space and coming back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements moved at a time: what stays in cache, and the bound on scratch memory beside the
largest tensor.
"""


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
        self._saved: list[tuple[Tensor, Tensor]] = []
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
        for pairs in _chunks(entering):
            params, eps = [p for p, _ in pairs], [e for _, e in pairs]
            moved = torch._foreach_add(eps, params)
            torch._foreach_copy_(eps, params)
            self._saved.extend(pairs)
            for param, there in zip(params, moved, strict=True):
                torch.where(self._ok.to(param.device), there.to(param.dtype), param, out=param)

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
        for pairs in _chunks(self._saved):
            torch._foreach_copy_([p for p, _ in pairs], [saved for _, saved in pairs])
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
        sums: list[Tensor | None] = [None] * len(vector)
        for param, before in self._saved:
            entry = vector[place[id(param)]]
            if entry is not None:
                flat = [t.flatten().split(CHUNK) for t in (param, before, entry)]
                sums[place[id(param)]] = _dot_steps(zip(*flat, strict=True))
        for param, support, saved in self._saved_inside:
            entry = vector[place[id(param)]]
            if entry is not None:
                pieces = zip(saved, support.pieces(param, entry), strict=True)
                sums[place[id(param)]] = _dot_steps(
                    (w, w.masked_scatter(mask, values), e) for values, (mask, _, (w, e)) in pieces
                )
        return sums


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


def _chunks(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield runs of pairs of one device and dtype with about `CHUNK` elements, a larger tensor
    alone.
    """
    run: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pair in pairs:
        tensor = pair[0]
        new_kind = bool(run) and (run[0][0].device, run[0][0].dtype) != (
            tensor.device,
            tensor.dtype,
        )
        if run and (new_kind or size + tensor.numel() > CHUNK):
            yield run
            run, size = [], 0
        run.append(pair)
        size += tensor.numel()
    if run:
        yield run
