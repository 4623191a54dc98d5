# SPDX-License-Identifier: Apache-2.0
"""`Vector`: one tensor per trainable parameter, with the algebra that the papers' equations
need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor
Parts = list[Tensor | None]
"""One `()` value per parameter, of what this process holds of it; `None` where there is nothing."""


CHUNK = 1 << 20
"""Elements worked on at a time: what stays in a CPU's cache, and the bound on scratch memory."""


class Shards:
    """How parameters are spread over processes: here not at all, each process holds them whole."""

    def sums(self, parts: Parts) -> Parts:
        """Return per parameter the sum of the values of all its shards."""
        return parts

    def before(self, parts: Parts) -> Parts:
        """Return per parameter the sum of the values of the shards before this process's."""
        return [None if part is None else torch.zeros_like(part) for part in parts]


WHOLE = Shards()


def add_up(sums: list[Tensor | None]) -> Tensor:
    """Return the `()` sum of the present entries, on the first one's device."""
    present = [s for s in sums if s is not None]
    if not present:
        return torch.zeros(())
    return torch.stack([s.to(present[0].device, non_blocking=True) for s in present]).sum()


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape as they are, or flat views of `CHUNK` elements where they are
    larger and have such views.
    """
    if tensors[0].numel() <= CHUNK or not all(t.is_contiguous() for t in tensors):
        yield tensors
    else:
        yield from zip(*(t.view(-1).split(CHUNK) for t in tensors), strict=True)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the `()` inner product of two tensors of one shape, in float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.flatten().to(wide), b.flatten().to(wide))


class Vector(Sequence[Tensor | None]):
    """A point or direction in weight space: one tensor per trainable parameter, in their order.

    An entry is `None` where there is nothing (no gradient, or a parameter that is left alone). In
    sums `None` counts as zero (`None + x = x`); in products and scalings it stays `None`. `+ - * /`
    make new vectors; `mul_` and `add_` change this one in place. `*` with another vector is element
    by element. Tensors are local shards where the parameters are sharded; `shards` then adds up
    over all of them, so that `dot` and `norm` are global.
    """

    __slots__ = ("_norm", "shards", "tensors")

    def __init__(self, tensors: Iterable[Tensor | None], shards: Shards = WHOLE) -> None:
        self.tensors = list(tensors)
        self.shards = shards
        self._norm: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> Tensor | None:  # type: ignore[override]
        return self.tensors[index]

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.tensors)

    def __repr__(self) -> str:
        shapes = [None if t is None else tuple(t.shape) for t in self.tensors]
        return f"Vector({len(self)} tensors: {shapes[:4]}{'...' if len(self) > 4 else ''})"

    def _like(self, tensors: Iterable[Tensor | None]) -> Vector:
        return Vector(tensors, self.shards)

    # -- sums -----------------------------------------------------------------------------------

    def __add__(self, other: Vector) -> Vector:
        return self.clone().add_(other)

    def __sub__(self, other: Vector) -> Vector:
        return self.clone().add_(other, -1.0)

    def __neg__(self) -> Vector:
        return self * -1.0

    def add_(self, other: Vector, scale: Scalar = 1.0) -> Vector:
        """Add `scale * other` in place and return self; entries missing here are copied from
        `other`.
        """
        self._norm = None
        both = [
            i
            for i, (a, b) in enumerate(zip(self, other, strict=True))
            if a is not None and b is not None
        ]
        for mine, (theirs,) in _groups(self.tensors, both, other.tensors):
            if isinstance(scale, Tensor):
                factor = scale.to(mine[0].device)
                for a, b in zip(mine, theirs, strict=True):
                    a.addcmul_(b, factor)  # one tensor at a time: no scratch copy of all of them
            else:
                torch._foreach_add_(mine, theirs, alpha=scale)
        for i, new in enumerate(other):
            if new is not None and self.tensors[i] is None:
                self.tensors[i] = new * scale
        return self

    # -- products -------------------------------------------------------------------------------

    def __mul__(self, factor: Scalar | Vector) -> Vector:
        if isinstance(factor, Vector):
            pairs = zip(self, factor, strict=True)
            return self._like(None if a is None or b is None else a * b for a, b in pairs)
        return self.clone().mul_(factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Scalar) -> Vector:
        return self * (1.0 / divisor)

    def mul_(self, factor: Scalar) -> Vector:
        """Multiply by a number or a `()` tensor in place and return self; a known norm stays
        known.
        """
        if self._norm is not None:
            scale: Any = factor.to(self._norm) if isinstance(factor, Tensor) else factor
            self._norm = self._norm * abs(scale)
        for mine, _ in _groups(self.tensors, self.present):
            torch._foreach_mul_(
                mine, factor.to(mine[0].device) if isinstance(factor, Tensor) else factor
            )
        return self

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """Put `other` (zero where it has no entry) in place unless the `()` bool tensor `ok` is
        true; return self.

        Decided on the device: what keeps a non-finite value out of a method's state.
        """
        self._norm = None
        for i, (a, b) in enumerate(zip(self, other or [None] * len(self), strict=True)):
            if a is not None:
                torch.where(ok.to(a.device), a, torch.zeros_like(a) if b is None else b, out=a)
            elif b is not None:
                self.tensors[i] = torch.where(ok.to(b.device), torch.zeros_like(b), b)
        return self

    def dot(self, other: Vector) -> Tensor:
        """Return the inner product over all parameters as a `()` tensor (float32 or wider)."""
        sums: list[Tensor | None] = [None] * len(self)
        for i, (a, b) in enumerate(zip(self, other, strict=True)):
            if a is not None and b is not None:
                sums[i] = inner(a, b)
        return add_up(self.shards.sums(sums))

    def norm(self) -> Tensor:
        """Return the L2 norm over all parameters as a `()` tensor (float32 or wider), computed
        once.
        """
        if self._norm is None:
            self._norm = add_up(self._squares()).sqrt()
        return self._norm

    def norms(self) -> list[Tensor | None]:
        """Return the L2 norm of each entry, over all of its shards, as `()` tensors."""
        return [None if square is None else square.sqrt() for square in self._squares()]

    def _squares(self) -> Parts:
        squares: Parts = [None] * len(self)
        for indices in _by_kind(self.tensors, self.present):
            mine: list[Any] = [self.tensors[i] for i in indices]
            wide = torch.promote_types(mine[0].dtype, torch.float32)
            for i, norm in zip(indices, torch._foreach_norm(mine, 2, dtype=wide), strict=True):
                squares[i] = norm * norm
        return self.shards.sums(squares)

    # -- structure ------------------------------------------------------------------------------

    def changed(self) -> Vector:
        """Forget the norm, after somebody wrote into the tensors; return self."""
        self._norm = None
        return self

    @property
    def present(self) -> list[int]:
        """Indices of the entries that are not `None`."""
        return [i for i, t in enumerate(self.tensors) if t is not None]

    def clone(self) -> Vector:
        """Return a vector with its own storage."""
        copy = self._like(None if t is None else t.clone() for t in self)
        copy._norm = self._norm
        return copy

    def keep(self, chosen: Sequence[bool]) -> Vector:
        """Return the vector (same storage) with `None` where `chosen` is false; itself where
        nothing is lost.
        """
        if all(yes or t is None for t, yes in zip(self, chosen, strict=True)):
            return self
        return self._like(t if yes else None for t, yes in zip(self, chosen, strict=True))

    @property
    def elements(self) -> int:
        """How many numbers the present entries hold on this rank."""
        return sum(t.numel() for t in self if t is not None)


StateValue = Vector | Tensor | int | float
"""What a method may carry from one update to the next."""


def _by_kind(tensors: list[Tensor | None], indices: list[int]) -> list[list[int]]:
    """Split indices into lists of one device and dtype each, as foreach kernels want them."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i in indices:
        t = tensors[i]
        assert t is not None
        kinds.setdefault((t.device, t.dtype), []).append(i)
    return list(kinds.values())


def _groups(
    tensors: list[Tensor | None], indices: list[int], *others: list[Tensor | None]
) -> Iterator[tuple[list[Tensor], list[list[Tensor]]]]:
    """Yield per kind the tensors at `indices`, and those of each of the `others` at the same
    places.
    """
    for kind in _by_kind(tensors, indices):
        yield [tensors[i] for i in kind], [[o[i] for i in kind] for o in others]  # type: ignore[misc]
