# SPDX-License-Identifier: Apache-2.0
"""Perturbed weights in other memory, which parameters hold for a while in place of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..sums import Sums
from ..sweeps import Entries, Scratch, number, policy, sweep
from ..vector import Scalar

USERS: Any = torch._C._storage_Use_Count
"""How many tensors and Python objects hold a storage."""


class Exchange:
    """Computes `w + eps` in the storage of eps, and lets the parameters hold it.

    The weights themselves are never written to, so that a CPU needs two walks where a copy there
    and back would need four, and no scratch memory.
    """

    def __init__(self) -> None:
        self._saved: list[tuple[int, Tensor, Tensor]] = []

    def enter(self, weights: Entries, eps: list[Tensor | None], factor: Scalar) -> None:
        """Perturb those weights for which this works, and take their entries out of `eps`."""
        mine = [
            e if w is not None and e is not None and exchangeable(w, e) else None
            for w, e in zip(weights, eps, strict=True)
        ]
        for group in sweep(weights, mine):
            here, steps = group.pieces
            if not isinstance(factor, float) or factor != 1.0:
                torch._foreach_mul_(steps, number(factor, steps[0]))
            torch._foreach_add_(steps, here)
        for i, there in enumerate(mine):
            if there is not None:
                param: Any = weights[i]
                self._saved.append((i, param, param.data))
                param.data, eps[i] = there, None

    def measure(self, sums: Sums, along: Entries, scratch: Scratch) -> None:
        """Add the inner products of the steps with the entries of a vector to sums."""
        there, here = ([None] * len(along) for _ in range(2))  # type: list[Any], list[Any]
        for i, param, weight in self._saved:
            there[i], here[i] = param.data, weight
        for group in sweep(there, here, along):
            after, before, mine = group.pieces
            sums.add(group.places, scratch("sub", after, before), mine, spare=True)

    def leave(self) -> None:
        """Let the parameters hold their own memory again."""
        while self._saved:
            _, param, before = self._saved.pop()
            param.data = before


def exchangeable(weight: Tensor, eps: Tensor) -> bool:
    """Return whether a parameter may hold the storage of its eps without anybody's noticing it.

    Views of the weights, and graphs that have saved them, would not see the perturbation. Launches
    cost an accelerator less than graphs that were captured with the address of the weights.
    """
    alike = weight.dtype == eps.dtype and weight.stride() == eps.stride()
    if not (alike and policy(weight.device).eager and type(weight) in (Tensor, nn.Parameter)):
        return False
    # The parameter itself, and the Python object that is asked.
    return weight.is_leaf and int(USERS(weight.untyped_storage()._cdata)) == 2
