# SPDX-License-Identifier: Apache-2.0
"""The inputs of a pass: each gets them as they came, though a loss may write into them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contents import SMALL
from .state import kind_of

logger = logging.getLogger(__name__)


class Inputs:
    """Lends the inputs of a micro-batch to one pass after the other.

    What is small is copied for every pass. What is large (1 MB) is copied in the first update, and
    from then on if anything was written there; otherwise the tensors' versions are watched.
    """

    def __init__(self) -> None:
        self._copies_large = True
        self._written = False

    def settle(self) -> None:
        """Note that the first update is done: whether passes write into inputs is now known."""
        self._copies_large = self._written

    @contextmanager
    def lend(self, inputs: Any) -> Iterator[Any]:
        """Hand out inputs that a pass may write into."""
        loan = Loan(inputs, self._copies_large)
        yield loan.inputs
        if not loan.touched():
            return
        if not self._copies_large:
            logger.warning(
                "A pass has written into its inputs for the first time, after the first update: "
                "the other passes of this update may have seen that. From now on each pass gets "
                "its own copy."
            )
        self._written = self._copies_large = True


class Loan:
    """Inputs for one pass.

    Args:
        values: the inputs as they came.
        large: whether to copy what is large, too.

    Attributes:
        inputs: the same in new containers, with copies of tensors and arrays.
    """

    def __init__(self, values: Any, large: bool = True) -> None:
        self._large = large
        self._done: dict[int, tuple[Any, Any]] = {}
        self._watched: list[tuple[Tensor, Tensor, int]] = []
        self.inputs = self._own(values)

    def touched(self) -> bool:
        """Return whether something large was written to."""
        return any(
            given._version != version or (given is not came and not _equal(given, came))
            for came, given, version in self._watched
        )

    def _own(self, value: Any) -> Any:
        if id(value) not in self._done:
            # With the value itself: only as long as it lives, its identity is its own.
            self._done[id(value)] = (value, self._new(value))
        return self._done[id(value)][1]

    def _new(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return value.copy() if self._large or value.nbytes <= SMALL else value
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, (tuple, list)):
            parts = map(self._own, value)
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if kind_of(value) == "object" and hasattr(value, "__dict__"):
            new = copy.copy(value)
            vars(new).update({key: self._own(one) for key, one in vars(value).items()})
            return new
        return value

    def _mapping(self, value: Any) -> Any:
        new = copy.copy(value)
        for key in list(value):
            new[key] = self._own(value[key])
        return new

    def _tensor(self, value: Tensor) -> Tensor:
        if value.grad_fn is not None or value.is_inference():
            return value
        small = value.layout is torch.strided and value.nbytes <= SMALL
        if not small and not self._large:
            self._watched.append((value, value, value._version))
            return value
        given = value.detach().clone().requires_grad_(value.requires_grad)
        if not small:
            self._watched.append((value, given, given._version))
        return given


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.detach(), other.detach())
