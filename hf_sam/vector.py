# SPDX-License-Identifier: Apache-2.0
"""`Vector`: one tensor per trainable parameter, with the algebra of the papers' equations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .sums import Numbers as Numbers
from .sums import Sums, squares
from .sums import add_up as add_up
from .sweeps import Gate, Scratch, by_kind, copies, number, sweep

Scalar = float | Tensor


class Selection(tuple[bool, ...]):
    """Which of the parameters: one yes or no for each, in their order.

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
    """How parameters are spread over processes: here each process holds all of their rows."""

    def sums(self, rows: Numbers) -> Numbers:
        """Return the sums over processes of numbers that each computed from the rows it holds."""
        return rows

    def before(self, rows: Numbers) -> Numbers:
        """Return the sums of the numbers of those processes that hold earlier rows."""
        return [None if number is None else torch.zeros_like(number) for number in rows]

    def total(self, sums: Sums) -> Tensor:
        """Return the `()` sum of everything over parameters and processes."""
        if self is WHOLE:
            return sums.total
        # A process that holds no rows of a parameter has no number, but gets the others' sum: all
        # processes have to find the same total.
        numbers = sums.numbers
        zero = torch.zeros_like(next((n for n in numbers if n is not None), torch.zeros(())))
        return add_up(self.sums([zero if n is None else n for n in numbers]))


WHOLE = Placement()


class Vector(Sequence[Tensor | None]):
    """A point or direction in weight space: one tensor per trainable parameter, in their order.

    An entry is `None` where there is nothing (no gradient, or a parameter that is left alone). In
    sums `None` counts as zero (`None + x = x`); in products and scalings it stays `None`. `+ - * /`
    make new vectors; names that end in `_` change this one in place. `*` with another vector is
    element by element. Where processes share the parameters, each holds some of their rows, and
    `placement` adds up over all of them, so that `dot` and `norm` are global.

    A factor in `mul_` is applied when somebody looks at the entries; whoever walks over them anyway
    can take it along (`hand_over`).

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
        """The entries."""
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
        """Add `scale * other` in place; entries that are missing here are copied from `other`."""
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
        # A CPU adds in one walk, which rounds once, so it does so whatever the policy.
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
        if self._norm is not None:
            scale: Any = factor.to(self._norm) if isinstance(factor, Tensor) else factor
            self._norm = self._norm * abs(scale)
        self._factor = factor if self._factor is None else self._factor * factor
        return self

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """Put `other` (zero where it has no entry) in place unless the `()` bool `ok` is true.

        The device decides, without a look from the host: this keeps non-finite values out of a
        method's state.
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
            torch._foreach_add_(mine, instead)  # one of the two is zero
        for i, b in enumerate(other):
            if b is not None and self.tensors[i] is None:
                self.tensors[i] = torch.where(ok.to(b.device), torch.zeros_like(b), b)
        return self

    def dot(self, other: Vector) -> Tensor:
        """Return the inner product over all parameters as a `()` tensor (float32 or wider)."""
        sums = Sums(len(self))
        for group in sweep(self.tensors, other.tensors):
            sums.add(group.places, *group.pieces)
        return self.placement.total(sums)

    def norm(self) -> Tensor:
        """Return the L2 norm over all parameters as a `()` tensor (float32 or wider).

        It is computed once, and again after a change in place.
        """
        if self._norm is None:
            self._norm = add_up(self._squares()).sqrt()
        return self._norm

    def norms(self) -> Numbers:
        """Return the L2 norm of each entry, over all of its rows, as `()` tensors."""
        norms = self._squares()
        for places in by_kind(norms):
            roots = torch.stack(_at(places, norms)).sqrt().unbind()
            for i, root in zip(places, roots, strict=True):
                norms[i] = root
        return norms

    def _squares(self) -> Numbers:
        return self.placement.sums(squares(self.tensors))

    # -- structure ------------------------------------------------------------------------------

    def changed(self) -> Vector:
        """Forget the norm, after somebody wrote into the tensors; return self."""
        self._norm = None
        return self

    def hand_over(self) -> list[Tensor | None]:
        """Return the entries, and forget them: whoever gets them may do with them what it likes."""
        tensors, self._tensors = self.tensors, None
        return tensors

    def hand_over_unscaled(self) -> tuple[list[Tensor | None], Scalar]:
        """Return entries as `hand_over` does, and the factor that they are to be multiplied by."""
        tensors, factor = self._unscaled, self._factor
        self._tensors = self._factor = None
        return tensors, 1.0 if factor is None else factor

    @property
    def handed_over(self) -> bool:
        """Whether the storage has gone to somebody else, so that nothing can be asked any more."""
        return self._tensors is None

    def moved(self) -> Vector:
        """Return a vector that takes over this one's storage and norm; this one is then empty."""
        new = copy.copy(self)
        self._tensors = None
        return new

    @property
    def present(self) -> list[int]:
        """Indices of the entries that are not `None`."""
        return [i for i, t in enumerate(self._unscaled) if t is not None]

    @property
    def selection(self) -> Selection:
        """The parameters that have an entry."""
        return Selection(t is not None for t in self._unscaled)

    def clone(self) -> Vector:
        """Return a vector with its own storage."""
        new = self._like(copies(self.tensors))
        new._norm = self._norm
        return new

    def on(self, selection: Sequence[bool]) -> Vector:
        """Return the vector (same storage) with `None` for parameters that are not selected.

        It is this object where nothing is left out, and so keeps a known norm.
        """
        if all(yes or t is None for t, yes in zip(self._unscaled, selection, strict=True)):
            return self
        return self._like(t if yes else None for t, yes in zip(self, selection, strict=True))

    @property
    def elements(self) -> int:
        """How many numbers the present entries hold on this process."""
        return sum(t.numel() for t in self._unscaled if t is not None)


StateValue = Vector | Tensor | int | float
"""What a method may carry from one update to the next."""


def _at(places: list[int], tensors: Sequence[Tensor | None]) -> list[Any]:
    return [tensors[i] for i in places]
