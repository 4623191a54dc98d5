# SPDX-License-Identifier: Apache-2.0
"""Norms and inner products of many tensors, for which the host does not wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import sweeps
from .sweeps import Entries, by_kind

Numbers = list[Tensor | None]
"""One `()` tensor per parameter, or `None` for a parameter without a number."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the `()` inner product of two tensors of equal shape, in float32 or wider."""
    return torch.stack(_inner(a, b)).sum()


def _inner(a: Tensor, b: Tensor) -> list[Tensor]:
    """Return the summands of the inner product, one for each slice that fits the cache."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.numel() * a.element_size() <= sweeps.CACHED.bytes:
        return [torch.dot(a.flatten().to(wide), b.flatten().to(wide))]
    length = sweeps.CACHED.bytes // a.element_size()
    cut = zip(a.flatten().split(length), b.flatten().split(length), strict=True)
    # A widened copy of one slice is small, a widened copy of the tensor is not.
    return [torch.dot(x.to(wide), y.to(wide)) for x, y in cut]


def in_slices(device: torch.device) -> bool:
    """Return whether inner products are sums over slices, which is so on a CPU.

    It does not depend on the policy, so that a forced policy gives the same results.
    """
    return device.type == "cpu"


class Sums:
    """Inner products per parameter, added up from the pieces that a sweep yields.

    On an accelerator there is a fast foreach kernel for norms and none for sums. So sums are
    computed from L1 norms, which takes few kernels: `sum x = 2 sum max(x, 0) - sum |x|`.
    """

    def __init__(self, count: int) -> None:
        self._parts: list[list[Tensor]] = [[] for _ in range(count)]
        self._norms: dict[Any, list[tuple[int, Tensor, Tensor]]] = {}

    def add(
        self, places: Sequence[int], a: list[Tensor], b: list[Tensor], *, spare: bool = False
    ) -> None:
        """Add the inner products of pieces of the parameters at some places.

        Args:
            places: the index of the parameter that each piece belongs to.
            a: the pieces of one vector.
            b: the pieces of the other vector.
            spare: whether `a` may be overwritten.
        """
        if in_slices(a[0].device):
            for place, x, y in zip(places, a, b, strict=True):
                self._parts[place].extend(_inner(x, y))
            return
        wide = torch.promote_types(a[0].dtype, torch.float32)
        if a[0].dtype != wide or b[0].dtype != wide:
            a, b = ([t.to(wide) for t in tensors] for tensors in (a, b))
        if spare:
            torch._foreach_mul_(a, b)
        else:
            a = list(torch._foreach_mul(a, b))
        sizes = torch._foreach_norm(a, 1)  # before the clamp removes the negative products
        torch._foreach_clamp_min_(a, 0.0)
        pairs = zip(places, sizes, torch._foreach_norm(a, 1), strict=True)
        self._norms.setdefault((a[0].device, wide, 1), []).extend(pairs)

    def add_squares(self, places: Sequence[int], tensors: list[Tensor]) -> None:
        """Add the squared norms of pieces of the parameters at some places."""
        if in_slices(tensors[0].device):
            self.add(places, tensors, tensors)
            return
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        norms = torch._foreach_norm(tensors, 2, dtype=wide)
        pairs = ((place, norm, norm) for place, norm in zip(places, norms, strict=True))
        self._norms.setdefault((tensors[0].device, wide, 2), []).extend(pairs)

    @property
    def numbers(self) -> Numbers:
        """The sum per parameter, as a `()` tensor; None where nothing was added."""
        return [
            None if not mine else mine[0] if len(mine) == 1 else torch.stack(mine).sum()
            for mine in self._all()
        ]

    @property
    def total(self) -> Tensor:
        """The `()` sum over all parameters."""
        return add_up(part for mine in self._all() for part in mine)

    def _all(self) -> list[list[Tensor]]:
        """Return the summands of each parameter."""
        parts = [list(mine) for mine in self._parts]
        # Stacked, so that all numbers of a kind take one kernel instead of one each.
        for (_, _, power), norms in self._norms.items():
            sums = torch.stack([norm for _, norm, _ in norms])
            if power == 2:
                sums = sums.square()
            else:
                sums = 2 * torch.stack([positive for _, _, positive in norms]) - sums
            for (place, _, _), one in zip(norms, sums.unbind(), strict=True):
                parts[place].append(one)
        return parts


def squares(tensors: Entries) -> Numbers:
    """Return the squared L2 norm of each entry, `()`, in float32 or wider."""
    numbers: Numbers = [None] * len(tensors)
    for places, found in _squares(tensors):
        for i, square in zip(places, found.unbind(), strict=True):
            numbers[i] = square
    return numbers


def square(tensors: Entries) -> Tensor:
    """Return the `()` squared L2 norm of all entries together, in float32 or wider."""
    sums = [found.sum() for _, found in _squares(tensors)]
    return sums[0] if len(sums) == 1 else add_up(sums)


def _squares(tensors: Entries) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the places of the entries of a kind, and their squared norms, (N,)."""
    for places in by_kind(tensors):
        mine: list[Any] = [tensors[i] for i in places]
        wide = torch.promote_types(mine[0].dtype, torch.float32)
        yield places, torch.stack(torch._foreach_norm(mine, 2, dtype=wide)).square()


def usable(length: Tensor) -> Tensor:
    """Return whether a `()` length is positive and finite, as a `()` bool tensor."""
    return (length > 0) & (length < math.inf)


def or_zero(number: Tensor) -> Tensor:
    """Return a `()` number, or zero if it is not finite."""
    return number.nan_to_num(0.0, 0.0, 0.0)


def add_up(numbers: Iterable[Tensor | None]) -> Tensor:
    """Return the `()` sum of the present entries, on the first one's device."""
    present = [number for number in numbers if number is not None]
    if not present:
        return torch.zeros(())
    device = present[0].device
    if any(number.device != device for number in present):
        present = [number.to(device, non_blocking=True) for number in present]
    return torch.stack(present).sum()
