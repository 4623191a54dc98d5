# SPDX-License-Identifier: Apache-2.0
"""Parameters that share memory: a weight that several parameters hold is one weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Entries = Sequence[Tensor | None]


@dataclass(frozen=True)
class Block:
    """A run of memory in which a weight belongs to several parameters, or several times to one.

    Attributes:
        members: the indices of the parameters that lie in the run.
        weights: all weights of the run, (N,).
        views: for each member, its size, its stride and its offset in the run.
    """

    members: list[int]
    weights: Tensor
    views: list[tuple[torch.Size, tuple[int, ...], int]]

    def gathered(self, entries: Entries) -> Tensor | None:
        """Return the sum of the members' entries for each weight, (N,), or None without any."""
        present: list[Any] = [
            (entries[i], view)
            for i, view in zip(self.members, self.views, strict=True)
            if entries[i] is not None
        ]
        if not present:
            return None
        total = torch.zeros_like(self.weights, dtype=present[0][0].dtype)
        for entry, (size, stride, offset) in present:
            mine = total.as_strided(size, stride, offset)
            # `add_` on a view that repeats a weight would keep one of the addends only.
            if _repeats(mine):
                places = torch.arange(len(total), device=total.device)
                places = places.as_strided(size, stride, offset)
                total.index_add_(0, places.reshape(-1), entry.to(total).reshape(-1))
            else:
                mine.add_(entry)
        return total


class Memory:
    """The weights of some parameters, each of them once.

    Where parameters share memory, the first of them represents all of it, as a flat tensor, and the
    others have no entry. By the chain rule, a weight that several parameters hold moves by the sum
    of their entries for it.

    Args:
        params: the parameters, or the rows of them that a process holds.

    Attributes:
        weights: the weights of each parameter. For a shared block, all of its weights are in the
            place of its first parameter.

    Example:
        >>> w = torch.zeros(3)
        >>> memory = Memory([w[:2], w[1:]])
        >>> memory.gathered([torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0])])
        [tensor([1., 6., 5.]), None]
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.weights = list(params)
        self._blocks = list(_blocks(params))
        for block in self._blocks:
            self.weights[block.members[0]] = block.weights

    def gathered(self, entries: Entries) -> Entries:
        """Return the entries that belong to `weights`, given the entries of the parameters."""
        if not self._blocks:
            return entries
        once = list(entries)
        for block in self._blocks:
            total = block.gathered(entries)
            for i in block.members:
                once[i] = None
            once[block.members[0]] = total
        return once

    @property
    def shared(self) -> set[int]:
        """The indices of the parameters that share memory."""
        return {i for block in self._blocks for i in block.members}


def _blocks(params: Sequence[Tensor]) -> Iterator[Block]:
    """Yield the runs of memory in which a weight belongs to a parameter more than once."""
    storages: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, p in enumerate(params):
        # The address of the storage object: meta tensors all have the data pointer 0.
        storages.setdefault((p.untyped_storage()._cdata, p.dtype), []).append(i)
    for members in storages.values():
        if len(members) > 1 or _repeats(params[members[0]]):
            yield from _overlapping(params, [i for i in members if params[i].numel()])


def _overlapping(params: Sequence[Tensor], members: list[int]) -> Iterator[Block]:
    """Yield the runs of one storage; parameters that overlap are in the same run."""
    run: list[int] = []
    end = 0
    for i in sorted(members, key=lambda i: params[i].storage_offset()):
        if run and params[i].storage_offset() >= end:
            yield from _block(params, run)
            run, end = [], 0
        run.append(i)
        end = max(end, _end(params[i]))
    yield from _block(params, run)


def _block(params: Sequence[Tensor], run: list[int]) -> Iterator[Block]:
    """Yield a run as a block, if parameters share it or one holds a weight several times."""
    if len(run) > 1 or (run and _repeats(params[run[0]])):
        start = _start(params[run[0]])
        end = max(_end(param) for param in _of(params, run))
        whole = params[run[0]].as_strided((end - start,), (1,), start)
        members = sorted(run)
        views = [(p.shape, p.stride(), _start(p) - start) for p in _of(params, members)]
        yield Block(members, whole, views)


def _of(params: Sequence[Tensor], places: list[int]) -> list[Tensor]:
    return [params[i] for i in places]


def _start(param: Tensor) -> int:
    return int(param.storage_offset())


def _end(param: Tensor) -> int:
    """Return the position in the storage after a parameter's last element."""
    last = sum((n - 1) * step for n, step in zip(param.shape, param.stride(), strict=True))
    return _start(param) + last + 1


def _repeats(param: Tensor) -> bool:
    """Return whether a weight may belong to several of a parameter's elements."""
    if param.is_contiguous():
        return False
    end = 0  # the last offset that the dimensions with smaller strides reach
    for step, n in sorted(zip(param.stride(), param.shape, strict=True)):
        if n > 1 and step <= end:
            return True
        end += (n - 1) * step
    return False
