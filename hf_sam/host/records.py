# SPDX-License-Identifier: Apache-2.0
"""What an object notes about its own doings (metrics, counters), and putting it back."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..landscape import Restore

HOLDERS = (dict, list, deque, set, tuple, Tensor, np.ndarray)


class Records:
    """The attributes of an object that its own code may write in passing.

    Trainers count tokens and collect metrics while they compute a loss. Attributes are remembered
    as they are; lists, dicts, sets, deques, tensors and arrays, also inside one another, with their
    content, which is put back into the same objects. Any other object (a model, an optimizer, a
    meter of a class of its own) is not looked into.

    Args:
        owner: the object.
        but: names of attributes that are no records, such as the training data.
    """

    def __init__(self, owner: object, but: Collection[str] = ()) -> None:
        self._attributes = vars(owner)
        self._but = frozenset(but)

    def remember(self) -> Restore:
        """Return a function that makes the attributes what they are now, as often as called."""
        own = self._attributes
        now = {name: value for name, value in own.items() if name not in self._but}
        undo: list[Restore] = []
        _remember(tuple(now.values()), undo, frozenset())

        def restore() -> None:
            for name in [n for n in own if n not in now and n not in self._but]:
                del own[name]
            own.update(now)
            for put_back in undo:
                put_back()

        return restore


def _remember(value: Any, undo: list[Restore], above: frozenset[int]) -> None:
    """Add what puts back the content of a value, and of what it holds."""
    inner: Collection[Any] = ()
    if isinstance(value, dict):
        undo.append(_of_dict(value))
        inner = value.values()
    elif isinstance(value, (list, deque)):
        undo.append(_of_list(value))
        inner = value
    elif isinstance(value, tuple):
        inner = value
    elif isinstance(value, set):
        undo.append(_of_set(value))
    elif isinstance(value, np.ndarray):
        undo.append(_of_array(value))
    elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if not value.requires_grad:
            undo.append(_of_tensor(value))
    path = above | {id(value)}
    for one in inner:
        if isinstance(one, HOLDERS) and id(one) not in path:
            _remember(one, undo, path)


def _of_dict(value: dict[Any, Any]) -> Restore:
    items = dict(value.items())

    def restore() -> None:
        if list(value) != list(items) or any(value[k] is not items[k] for k in items):
            value.clear()
            value.update(items)

    return restore


def _of_list(value: list[Any] | deque[Any]) -> Restore:
    items = list(value)

    def restore() -> None:
        if len(value) != len(items) or any(a is not b for a, b in zip(value, items, strict=True)):
            value.clear()
            value.extend(items)

    return restore


def _of_set(value: set[Any]) -> Restore:
    items = set(value)

    def restore() -> None:
        value.symmetric_difference_update(value ^ items)

    return restore


def _of_tensor(value: Tensor) -> Restore:
    content = value.clone()

    def restore() -> None:
        with torch.no_grad():
            value.copy_(content)

    return restore


def _of_array(value: np.ndarray[Any, Any]) -> Restore:
    content = value.copy()

    def restore() -> None:
        value[...] = content

    return restore
