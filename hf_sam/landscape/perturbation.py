# SPDX-License-Identifier: Apache-2.0
"""A step in weight space that is undone bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..sums import Sums
from ..sweeps import Entries, Gate, Group, Scratch, by_kind, number, policy, sweep
from ..vector import Numbers, Scalar, Vector
from .exchange import Exchange
from .memory import Memory
from .rounding import Nearest
from .snapshot import OnDevice, beside
from .sparse import Inside, Support

PARTS = 5
"""Least number of groups in which sparse weights are moved; the scratch is three groups large."""


def refuse_complex(params: Sequence[Tensor], names: Sequence[str] | None = None) -> None:
    """Refuse parameters of complex numbers.

    Raises:
        NotImplementedError: a parameter is complex; the message names the first one.
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
    """A context in which the parameters are `w + factor * eps`; leaving it restores `w` bitwise.

    The weights are restored after an exception, too. The tensors of `eps` are consumed: each
    becomes the snapshot of its parameter, or on a CPU the place of the perturbed weights (see
    `Exchange`), so that a perturbation needs no storage beyond `eps` itself. Only where the dtype
    of `eps` differs from that of the weights is the snapshot a copy.
    A tensor with a support is exchanged for a snapshot of the elements inside it, and no other
    element moves. If `ok` (a `()` bool tensor) is false, the parameters stay as they are; this
    needs no host synchronisation. Parameters with a `None` entry are never touched. Parameters may
    share memory: see `Memory`. `rounding` says how the sums are stored,
    and `snapshot` where the weights are.

    Attributes:
        along: a vector whose inner product with the step is measured while the weights return,
            because all of them pass through the processor's cache then.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        eps: list[Tensor | None],
        ok: Tensor,
        supports: Sequence[Support | None] | None = None,
        factor: Scalar = 1.0,
        rounding: Nearest | None = None,
        snapshot: OnDevice | None = None,
    ) -> None:
        refuse_complex(params)
        self._params, self._eps, self._supports = params, eps, supports
        self._ok, self._gate, self._factor = ok, Gate(ok), factor
        self._rounding, self._snapshot = rounding or Nearest(), snapshot or OnDevice()
        self._saved: list[tuple[Group, Inside | None]] = []
        self._exchange = Exchange()
        self._sums = Sums(len(params))
        self._eager = policy(ok.device).eager
        self.along: Vector | None = None

    @property
    def displacement_dot(self) -> Numbers:
        """The `()` inner product, for each parameter, of the step taken with the entry of `along`.

        The step is the one that rounding left. The numbers are known once the context is left.
        """
        return self._sums.numbers

    @property
    def displacement_dots(self) -> Sums:
        """The summands of `displacement_dot`, before they are added up."""
        return self._sums

    @torch.no_grad()
    def __enter__(self) -> Perturbation:
        try:
            self._memory = Memory(self._params)
            given, self._eps = self._eps, []
            eps = list(self._memory.gathered(given))
            given.clear()  # the caller may hold the list, and so the tensors, longer than needed
            inside = self._supported(eps)
            whole = [None if i in inside else e for i, e in enumerate(eps)]
            if self._eager and self._rounding.exchanges and bool(self._ok):
                self._exchange.enter(self._memory.weights, whole, self._factor)
            if not self._eager:  # few kernels for all tensors of a kind
                for places in by_kind(whole):
                    self._scale_([whole[i] for i in places])
            scratch = Scratch()
            parts, size = self._snapshot.parts, self._rounding.bytes
            for group in sweep(self._memory.weights, whole, parts=parts, size=size):
                self._enter(group, scratch)
            del scratch  # its memory is free before the sparse part allocates its own
            self._enter_inside(eps, inside)
        except BaseException:  # a failed `__enter__` gets no `__exit__` from Python
            self.__exit__(None, None, None)
            raise
        return self

    def _supported(self, eps: Entries) -> dict[int, Support]:
        """Return the supports, by index, of the entries that are present and share no memory."""
        supports = enumerate(self._supports or [None] * len(eps))
        return {
            i: s
            for i, s in supports
            if s is not None and eps[i] is not None and i not in self._memory.shared
        }

    def _enter(self, group: Group, scratch: Scratch) -> None:
        weights, eps = group.pieces
        # An eager device scales while this slice is in the cache.
        step = scratch("mul", eps, number(self._factor if self._eager else 1.0, eps[0]))
        if self._eager:
            self._gate.pass_(step)
        # The storage of eps is free now, and may become the snapshot of the weights.
        group.pieces[1] = self._snapshot.keep(weights, eps)
        # Saved before the weights move, so that an exception in the move can be undone.
        self._saved.append((group, None))
        self._rounding.move_(group, step)

    def _scale_(self, eps: list[Any]) -> None:
        """Multiply `eps` by the factor, and set it to zero unless `ok` is true."""
        if not isinstance(self._factor, float) or self._factor != 1.0:
            torch._foreach_mul_(eps, number(self._factor, eps[0]))
        self._gate.pass_(eps)

    def _enter_inside(self, eps: list[Tensor | None], supports: dict[int, Support]) -> None:
        sparse = [e if i in supports else None for i, e in enumerate(eps)]
        masks = [supports[i].mask if i in supports else None for i in range(len(eps))]
        parts = max(PARTS, self._snapshot.parts)
        eps.clear()  # each tensor is freed as soon as its weights have been saved
        for group in sweep(self._memory.weights, masks, sparse, parts=parts, whole=True):
            steps = group.pieces.pop()
            inside = Inside(group, [supports[i].count for i in group.places])
            self._saved.append((group, inside))
            inside.step(steps, self._scale_, self._rounding, self._snapshot)
            del steps
            # A tensor that was taken whole is done; a slice leaves the rest of its tensor to come.
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
            # A method that has perturbed along that vector has consumed it.
            known = error is None and self.along is not None and not self.along.handed_over
            self._return(self._memory.gathered(self.along or []) if known else None)
        except BaseException:  # the weights return even if the measurement fails
            self._sums = Sums(len(self._params))
            self._return(None)
            raise
        finally:
            self._saved = []

    def _return(self, along: Entries | None) -> None:
        """Restore the snapshot in reverse order of the moves; a second call changes nothing."""
        weights, snapshots, scratch = list[Tensor](), list[Tensor](), Scratch()
        if along is not None:
            self._exchange.measure(self._sums, along, scratch)
        self._exchange.leave()
        for group, inside in reversed(self._saved):
            if along is not None:
                self._measure(group.where(along), inside, along, scratch)
            if inside is not None:
                inside.restore()
                continue
            weights += group.pieces[0]
            snapshots += group.pieces[1]
            if self._eager and along is not None:  # while this slice is in the cache
                torch._foreach_copy_(weights, snapshots)
                weights, snapshots = [], []
        for places in by_kind(weights):
            mine, before = ([tensors[i] for i in places] for tensors in (weights, snapshots))
            torch._foreach_copy_(mine, before, non_blocking=True)

    def _measure(
        self, group: Group, inside: Inside | None, along: Entries, scratch: Scratch
    ) -> None:
        """Add the group's part of the inner product to the sums."""
        if not group.places:
            return
        there = group.pieces[0]
        if inside is None:
            step = scratch("sub", there, beside(group.pieces[1], there))
        else:  # a sparse snapshot cannot be subtracted, so the weights return first
            step = scratch("mul", there, 1.0)
            inside.restore()
            torch._foreach_sub_(step, there)
        self._sums.add(group.places, step, group.of(along), spare=True)
