# SPDX-License-Identifier: Apache-2.0
"""`Vector`: one tensor per trainable parameter, with the algebra of the papers' equations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .sums import Numbers as Numbers
from .sums import Sums, square, squares
from .sums import add_up as add_up
from .sweeps import Gate, Scratch, by_kind, copies, number, sweep

Scalar = float | Tensor


class Selection(tuple[bool, ...]):
    """A mask over the parameters: one bool for each of them, in their order.

    Example:
        >>> Selection([True, False, True]).everything
        False
    """

    __slots__ = ()

    @property
    def everything(self) -> bool:
        """Whether no parameter is left out."""
        return all(self)


class Placement:
    """How parameters are spread over processes. In this base class each process holds all rows."""

    def sums(self, rows: Numbers) -> Numbers:
        """Return the sums over processes of numbers that each one computed from its own rows."""
        return rows

    def before(self, rows: Numbers) -> Numbers:
        """Return the sums of the numbers of the processes that hold earlier rows."""
        return [None if number is None else torch.zeros_like(number) for number in rows]

    def total(self, sums: Sums) -> Tensor:
        """Return the `()` sum over all parameters and processes."""
        if self is WHOLE:
            # One process needs no number per parameter, and so launches fewer kernels.
            return sums.total
        # A process that holds no rows of a parameter has no number, but gets the others' sum.
        numbers = sums.numbers
        zero = torch.zeros_like(next((n for n in numbers if n is not None), torch.zeros(())))
        return add_up(self.sums([zero if n is None else n for n in numbers]))


WHOLE = Placement()


class Vector(Sequence[Tensor | None]):
    """A point or direction in weight space: one tensor per trainable parameter, in their order.

    An entry is `None` if there is no gradient, or a parameter is not perturbed. In sums `None`
    counts as zero; in products it stays `None`. The operators `+ - * /` make new vectors, element
    by element; methods whose names end in `_` change this one in place. If the parameters are
    spread over processes, each process holds some of their rows, and `placement` adds up over all
    of them, so that `dot` and `norm` are global.

    The factor of `mul_` is applied when the entries are read. A caller that walks over them anyway
    can apply it itself, and so save a walk (`hand_over_unscaled`).

    Example:
        >>> v = Vector([torch.tensor([3.0, 0.0]), None, torch.tensor([4.0])])
        >>> float(v.norm())
        5.0
        >>> (2 * v)[2]
        tensor([8.])
    """

    __slots__ = ("_factor", "_norm", "_tensors", "placement")

    def __init__(self, tensors: Iterable[Tensor | None], placement: Placement = WHOLE) -> None:
        self._tensors: list[Tensor | None] | None = list(tensors)
        self.placement = placement
        self._norm: Tensor | None = None
        self._factor: Scalar | None = None

    @property
    def tensors(self) -> list[Tensor | None]:
        """The entries, with any pending factor of `mul_` applied to them in place."""
        tensors, factor = self._unscaled, self._factor
        if factor is not None:
            for places in by_kind(tensors):
                mine = _at(places, tensors)
                torch._foreach_mul_(mine, number(factor, mine[0]))
            self._factor = None
        return tensors

    @property
    def _unscaled(self) -> list[Tensor | None]:
        assert self._tensors is not None, (
            "this vector's storage was handed over (`perturbed` and in-place directions do that): "
            "clone() it before, to use it afterwards"
        )
        return self._tensors

    def __len__(self) -> int:
        return len(self._unscaled)

    def __getitem__(self, index: int) -> Tensor | None:  # type: ignore[override]
        return self.tensors[index]

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.tensors)

    def __repr__(self) -> str:
        if self._tensors is None:
            return "Vector(handed over)"
        shapes = [None if t is None else tuple(t.shape) for t in self.tensors]
        return f"Vector({len(self)} tensors: {shapes[:4]}{'...' if len(self) > 4 else ''})"

    def _like(self, tensors: Iterable[Tensor | None]) -> Vector:
        return Vector(tensors, self.placement)

    # -- sums -----------------------------------------------------------------------------------

    def __add__(self, other: Vector) -> Vector:
        return self.clone().add_(other)

    def __sub__(self, other: Vector) -> Vector:
        return self.clone().add_(other, -1.0)

    def __neg__(self) -> Vector:
        return self * -1.0

    def add_(self, other: Vector, scale: Scalar = 1.0) -> Vector:
        """Add `scale * other` in place; an entry that is missing becomes `scale` times other's."""
        self._norm = None
        if isinstance(scale, Tensor):
            self._add_scaled_(other, scale)
        else:
            for places in by_kind(self.tensors, other.tensors):
                torch._foreach_add_(_at(places, self), _at(places, other), alpha=scale)
        for i, new in enumerate(other):
            if new is not None and self.tensors[i] is None:
                self.tensors[i] = new * scale
        return self

    def _add_scaled_(self, other: Vector, scale: Tensor) -> None:
        # `addcmul_` takes one walk and rounds once; a forced policy must give the same bits.
        cpu = [t is not None and t.device.type == "cpu" for t in self]
        for mine, theirs, yes in zip(self, other, cpu, strict=True):
            if yes and mine is not None and theirs is not None:
                mine.addcmul_(theirs, scale.to(mine.device))
        scratch = Scratch()
        for group in sweep(self.on([not yes for yes in cpu]).tensors, other.tensors):
            mine_, theirs_ = group.pieces
            torch._foreach_add_(mine_, scratch("mul", theirs_, number(scale, theirs_[0])))

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
        """Multiply by a number or a `()` tensor in place; a known norm stays known."""
        if self._norm is not None:  # |factor| |v| is one number; computing it again is a walk
            scale: Any = factor.to(self._norm) if isinstance(factor, Tensor) else factor
            self._norm = self._norm * abs(scale)
        self._factor = factor if self._factor is None else self._factor * factor
        return self

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """Replace the entries by those of `other` (or zero) unless the `()` bool `ok` is true.

        The device decides and the host need not wait. Methods keep non-finite state out with it.
        """
        self._norm = None
        for places in by_kind(self.tensors):
            Gate(ok).pass_(_at(places, self))
        if other is None:
            return self
        scratch, no = Scratch(), Gate(~ok)
        for group in sweep(self.tensors, other.tensors):
            mine, theirs = group.pieces
            instead = scratch("mul", theirs, 1.0)
            no.pass_(instead)
            torch._foreach_add_(mine, instead)  # one of the two is zero, so nothing is rounded
        for i, b in enumerate(other):
            if b is not None and self.tensors[i] is None:
                self.tensors[i] = torch.where(ok.to(b.device), torch.zeros_like(b), b)
        return self

    def dot(self, other: Vector) -> Tensor:
        """Return the inner product over all parameters and processes, as a `()` tensor.

        It is computed in float32, or in the dtype of the entries if that is wider.
        """
        sums = Sums(len(self))
        for group in sweep(self.tensors, other.tensors):
            sums.add(group.places, *group.pieces)
        return self.placement.total(sums)

    def norm(self) -> Tensor:
        """Return the L2 norm over all parameters and processes, as a `()` tensor.

        It is computed in float32 or wider, and kept until the vector is changed in place.
        """
        if self._norm is None:
            mine, alone = self.tensors, self.placement is WHOLE
            total = square(mine) if alone else add_up(self.placement.sums(squares(mine)))
            self._norm = total.sqrt()
        return self._norm

    def norms(self) -> Numbers:
        """Return the L2 norm of each entry, over all of its rows, as `()` tensors."""
        norms = self.placement.sums(squares(self.tensors))
        for places in by_kind(norms):
            roots = torch.stack(_at(places, norms)).sqrt().unbind()
            for i, root in zip(places, roots, strict=True):
                norms[i] = root
        return norms

    # -- structure ------------------------------------------------------------------------------

    def changed(self) -> Vector:
        """Forget the norm, because the tensors were written to directly, and return self."""
        self._norm = None
        return self

    def hand_over(self) -> list[Tensor | None]:
        """Return the entries and forget them, so that the caller owns their storage."""
        tensors, self._tensors = self.tensors, None
        return tensors

    def hand_over_unscaled(self) -> tuple[list[Tensor | None], Scalar]:
        """Return the entries as `hand_over` does, and the factor that is still to be applied."""
        tensors, factor = self._unscaled, self._factor
        self._tensors = self._factor = None
        return tensors, 1.0 if factor is None else factor

    @property
    def handed_over(self) -> bool:
        """Whether the storage has been handed over, so that this vector cannot be used any more."""
        return self._tensors is None

    def moved(self) -> Vector:
        """Return a vector that takes over this one's storage and norm, and leave this one empty."""
        new = copy.copy(self)  # also of a subclass, with the supports of `Masked`
        self._tensors = None
        return new

    @property
    def present(self) -> list[int]:
        """The indices of the entries that are not `None`."""
        return [i for i, t in enumerate(self._unscaled) if t is not None]

    @property
    def selection(self) -> Selection:
        """The mask of the parameters that have an entry."""
        return Selection(t is not None for t in self._unscaled)

    def clone(self) -> Vector:
        """Return a vector with its own storage."""
        new = self._like(copies(self.tensors))
        new._norm = self._norm
        return new

    def on(self, selection: Sequence[bool]) -> Vector:
        """Return the vector, in the same storage, with `None` for parameters not selected.

        If no entry is left out, the result is this object, which keeps its norm.
        """
        if all(yes or t is None for t, yes in zip(self._unscaled, selection, strict=True)):
            return self
        return self._like(t if yes else None for t, yes in zip(self, selection, strict=True))

    @property
    def elements(self) -> int:
        """The number of elements that the entries hold on this process."""
        return sum(t.numel() for t in self._unscaled if t is not None)


StateValue = Vector | Tensor | int | float
"""The types of value that a method may carry from one update to the next."""


def _at(places: list[int], tensors: Sequence[Tensor | None]) -> list[Any]:
    return [tensors[i] for i in places]
