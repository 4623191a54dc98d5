# SPDX-License-Identifier: Apache-2.0
"""Counting, weighing and choosing the examples of a batch of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label that Hugging Face losses leave out."""


def examples(batch: Any) -> int:
    """Return B, the leading size of the labels or of the first tensor; a batch that holds none is
    one example.

    Args:
        batch: a tensor of shape (B, ...), or a mapping, list or tuple that holds some.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and labels.ndim:
            return labels.shape[0]
        batch = tuple(batch.values())
    if isinstance(batch, (list, tuple)):
        for value in batch:
            if isinstance(value, Tensor) and value.ndim:
                return value.shape[0]
    return 1


def take(batch: Any, index: Tensor | slice, name: str = "the batch") -> Any:
    """Return the batch of the chosen examples, in the order of the index.

    Tensors of leading size B, and lists of that length inside the batch, are cut; numbers, text,
    None and `()` tensors belong to the whole batch and stay; mappings, tuples and a list that is
    the batch itself are cut inside.

    Args:
        batch: a tensor of shape (B, ...), or a mapping, list or tuple that holds some.
        index: positions of shape (K,), or a slice.
        name: what an error calls the batch.

    Raises:
        ValueError: a field has no leading size B, so that it is unknown which rows belong to an
            example.
    """
    size = examples(batch)
    if isinstance(batch, list):
        return [_take(inner, index, size, f"field {i}") for i, inner in enumerate(batch)]
    return _take(batch, index, size, name)


def _take(value: Any, index: Tensor | slice, size: int, name: str) -> Any:
    if isinstance(value, Mapping):
        cut = {key: _take(inner, index, size, f"field {key!r}") for key, inner in value.items()}
        kind: Any = type(value)
        return kind(cut)
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return value
        if value.shape[0] == size:
            return (
                value[index]
                if isinstance(index, slice)
                else value.index_select(0, index.to(value.device))
            )
    elif isinstance(value, tuple):
        parts = [_take(inner, index, size, name) for inner in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, list) and len(value) == size:
        places = range(size)[index] if isinstance(index, slice) else index.tolist()
        return [value[i] for i in places]
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"{name} ({found}) has no leading size {size}, so single examples cannot be selected from "
        "this batch; use a method that takes whole batches, such as sam, or give the Trainer class "
        "a method take(inputs, index)"
    )


def weight(batch: Any, shifted: bool = False) -> Tensor | int:
    """Return what a batch's mean loss is a mean over: its labelled tokens, else its examples.

    Args:
        batch: a mapping with whole-number `labels` of shape (B, T), or anything else.
        shifted: the first token of each row is no target, as in a causal language model.

    Returns:
        `()` tensor of the number of labels other than -100, or the number of examples.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim < 2 or labels.is_floating_point():
        return examples(batch)
    if isinstance(batch.get("shift_labels"), Tensor):  # which Trainer counts, too
        return batch["shift_labels"].ne(IGNORED).sum()
    targets = labels[..., 1:] if shifted else labels
    return targets.ne(IGNORED).sum()


def ratio(part: Any, whole: Any) -> Any:
    """Return part / whole, 0 of nothing; of tensors in float64 where the device has it.

    Shares in float32 would round a float64 loss.
    """
    if not isinstance(part, Tensor) and not isinstance(whole, Tensor):
        return part / whole if whole else 0.0
    return (_wide(part) / _wide(whole)).nan_to_num(0.0, 0.0, 0.0)


def _wide(count: Any) -> Any:
    if not isinstance(count, Tensor):
        return count
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


def beginning(size: int, fraction: float) -> slice:
    """Return the first ceil(fraction size) of `size` examples, at least one."""
    return slice(0, max(math.ceil(fraction * size - 1e-9), 1))


def contiguous_groups(sizes: list[int], groups: int) -> list[list[tuple[int, slice]]]:
    """Cut batches of these sizes, one after the other, into contiguous groups of as equal size as
    possible.

    Returns:
        Per group the pairs (batch, slice of its examples). There are never more groups than
        examples.
    """
    total = sum(sizes)
    groups = max(min(groups, total), 1)
    ends = [total * (g + 1) // groups for g in range(groups)]
    cut: list[list[tuple[int, slice]]] = [[] for _ in ends]
    position = 0
    group = 0
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            while ends[group] <= position:
                group += 1
            length = min(size - start, ends[group] - position)
            cut[group].append((i, slice(start, start + length)))
            start, position = start + length, position + length
    return cut
