# SPDX-License-Identifier: Apache-2.0
"""Stepping aside in weight space and coming back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..sums import Sums
from ..sweeps import Entries, Gate, Group, Scratch, by_kind, cloned, number, policy, sweep
from ..vector import Numbers, Scalar, Vector
from .memory import Memory
from .sparse import Inside, Support

PARTS = 5
"""Groups at least in which a sparse perturbation is entered; its scratch is three of them."""


def refuse_complex(params: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """Refuse parameters of complex numbers.

    Raises:
        NotImplementedError: names the first of them.
    """
    for i, param in enumerate(params):
        if param.is_complex():
            name = f"parameter {i}" if names is None else repr(names[i])
            raise NotImplementedError(
                f"{name} holds complex numbers ({param.dtype}), which SAM does not perturb: keep "
                "its real and imaginary parts as a real parameter (torch.view_as_real), and use "
                "torch.view_as_complex in forward"
            )


class Perturbation:
    """A context in which `w + factor * eps` stands in the parameters; leaving it restores `w`
    bitwise, whatever happened.

    The tensors of `eps` are consumed: each becomes the snapshot of its parameter, so that stepping
    aside needs no storage beyond `eps` itself. Only where `eps` is of another type than the weights
    the snapshot is a copy. A tensor with a support is exchanged for a snapshot of the elements
    inside it, and no other element moves. Where `ok` (a `()` bool tensor) is false the parameters
    stay as they are; this needs no host synchronisation. Parameters with a `None` entry are never
    touched. Parameters may share memory: see `Memory`.

    Attributes:
        along: a vector whose inner product with the step is measured on the way back, when all
            weights pass through the processor's cache anyway.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        eps: list[Tensor | None],
        ok: Tensor,
        supports: Sequence[Support | None] | None = None,
        factor: Scalar = 1.0,
    ) -> None:
        refuse_complex(params)
        self._params, self._eps, self._supports = params, eps, supports
        self._ok, self._gate, self._factor = ok, Gate(ok), factor
        self._saved: list[tuple[Group, Inside | None]] = []
        self._sums = Sums(len(params))
        self._eager = policy(ok.device).eager
        self.along: Vector | None = None

    @property
    def displacement_dot(self) -> Numbers:
        """Per parameter the `()` inner product of the step taken (as rounded) with `along`'s entry,
        once the context is left.
        """
        return self._sums.numbers

    @property
    def displacement_dots(self) -> Sums:
        """The summands of it."""
        return self._sums

    @torch.no_grad()
    def __enter__(self) -> Perturbation:
        try:
            self._memory = Memory(self._params)
            given, self._eps = self._eps, []
            eps = list(self._memory.gathered(given))
            given.clear()  # whoever passed it may hold it longer than it is needed
            inside = self._supported(eps)
            whole = [None if i in inside else e for i, e in enumerate(eps)]
            if not self._eager:
                for places in by_kind(whole):
                    self._scale_([whole[i] for i in places])
            scratch = Scratch()
            for group in sweep(self._memory.weights, whole):
                self._enter(group, scratch)
            del scratch
            self._enter_inside(eps, inside)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _supported(self, eps: Entries) -> dict[int, Support]:
        """Return the supports by place: of tensors that are present, and share no memory."""
        found = enumerate(self._supports or [None] * len(eps))
        return {
            i: s
            for i, s in found
            if s is not None and eps[i] is not None and i not in self._memory.shared
        }

    def _scale_(self, eps: list[Any]) -> None:
        """Multiply by the factor, and by zero unless `ok`."""
        if not isinstance(self._factor, float) or self._factor != 1.0:
            torch._foreach_mul_(eps, number(self._factor, eps[0]))
        self._gate.pass_(eps)

    def _enter(self, group: Group, scratch: Scratch) -> None:
        weights, eps = group.pieces
        if self._eager:
            self._scale_(eps)  # what is in the cache now
        if eps[0].dtype == weights[0].dtype:
            moved = scratch("add", eps, weights)
            torch._foreach_copy_(eps, weights)
        else:  # it could not hold the weights
            moved = list(torch._foreach_add(eps, weights))
            group.pieces[1] = cloned(weights)
        self._saved.append((group, None))
        torch._foreach_copy_(weights, moved)

    def _enter_inside(self, eps: list[Tensor | None], supports: dict[int, Support]) -> None:
        sparse = [e if i in supports else None for i, e in enumerate(eps)]
        masks = [supports[i].mask if i in supports else None for i in range(len(eps))]
        eps.clear()  # each goes as soon as its weights have been saved
        for group in sweep(self._memory.weights, masks, sparse, parts=PARTS):
            steps = group.pieces.pop()
            inside = Inside(group, [supports[i].count for i in group.places])
            self._saved.append((group, inside))
            inside.step(steps, self._scale_)
            del steps
            for i, start in zip(group.places, group.starts, strict=True):
                sparse[i] = sparse[i] if start is not None else None

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
            self._return(self._memory.gathered(self.along or []) if known else None)
        except BaseException:  # the weights come back, whatever kept them from being measured
            self._sums = Sums(len(self._params))
            self._return(None)
            raise
        finally:
            self._saved = []

    def _return(self, along: Entries | None) -> None:
        """Put the snapshot back, what was moved last first; may be done twice."""
        weights, snapshots, scratch = list[Tensor](), list[Tensor](), Scratch()
        for group, inside in reversed(self._saved):
            if along is not None:
                self._measure(group.where(along), inside, along, scratch)
            if inside is not None:
                inside.restore()
                continue
            weights += group.pieces[0]
            snapshots += group.pieces[1]
            if self._eager:  # what is in the cache now
                torch._foreach_copy_(weights, snapshots)
                weights, snapshots = [], []
        for places in by_kind(weights):
            torch._foreach_copy_([weights[i] for i in places], [snapshots[i] for i in places])

    def _measure(
        self, group: Group, inside: Inside | None, along: Entries, scratch: Scratch
    ) -> None:
        """Note the group's part of the inner product."""
        if not group.places:
            return
        there = group.pieces[0]
        if inside is None:
            step = scratch("sub", there, group.pieces[1])
        else:
            step = scratch("mul", there, 1.0)
            inside.restore()
            torch._foreach_sub_(step, there)
        self._sums.add(group.places, step, group.of(along), spare=True)
