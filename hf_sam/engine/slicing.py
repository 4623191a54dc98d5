# SPDX-License-Identifier: Apache-2.0
"""Counting and choosing the examples of a batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def examples(batch: Any) -> int:
    """Return B, the leading size of the batch's first tensor; a batch that holds none counts as one example.

    Args:
        batch: a tensor of shape (B, ...), or a mapping, list or tuple that holds some.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, (list, tuple)) or isinstance(batch, Mapping):
        for value in values:
            if isinstance(value, Tensor) and value.ndim:
                return value.shape[0]
    return 1
