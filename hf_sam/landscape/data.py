# SPDX-License-Identifier: Apache-2.0
"""`Data`: the micro-batches of an update, how they weigh, and how they are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .protocol import BatchOps

IGNORED = -100
"""The label that Hugging Face losses leave out."""

Cut = tuple[int, Tensor | slice | None]
"""Number of a micro-batch, and which of its examples; None: all of it, uncut."""


class TensorOps:
    """Counts, weighs and takes the examples of batches that are tensors or collections of them."""

    def size(self, batch: Any) -> int:
        """Return the number of examples, B."""
        return examples(batch)

    def denominator(self, batch: Any) -> Any:
        """Return the number that shares are computed from: of labelled tokens, or of examples."""
        return denominator(batch)

    def scale(self, part: Any, whole: Any) -> float:
        """Return 1, because the mean loss of a part estimates the mean loss of the whole."""
        return 1.0

    def loss_of(self, batch: Any, losses: Tensor) -> Tensor:
        """Return the mean of the examples' losses, (B,), as `()`."""
        return losses.mean()

    def take(self, batch: Any, index: Tensor | slice | None) -> Any:
        """Return the batch of the examples at the given positions, or the whole batch for None."""
        return batch if index is None else take(batch, index)


@dataclass(frozen=True)
class Data:
    """Micro-batches, and the share that each of them has in the loss of all of them.

    Attributes:
        batches: the micro-batches, in any form that `ops` and the backward pass accept.
        shares: each micro-batch's share of all data. The shares of parts add up to that of the
            whole.
        ops: the operations that count, weigh and take examples.
        scales: per micro-batch, the factor by which its loss is multiplied so that it estimates the
            loss of the whole that it was cut from. The default is 1, which is right for a mean.

    Example:
        >>> data = Data.by_examples([torch.zeros(6, 2), torch.zeros(2, 2)])
        >>> data.shares
        [0.75, 0.25]
        >>> [group.share for group in data.groups(4)]
        [0.25, 0.25, 0.25, 0.25]
    """

    batches: Sequence[Any]
    shares: Sequence[Any]
    ops: BatchOps
    scales: Sequence[Any] | None = None

    @classmethod
    def by_examples(cls, batches: Sequence[Any], ops: BatchOps | None = None) -> Data:
        """Return the data in which every example counts the same, with shares that sum to 1."""
        ops = ops or TensorOps()
        sizes = [ops.size(batch) for batch in batches]
        # At least 1, so that empty batches get the share 0 rather than a division by zero.
        return cls(batches, [size / max(sum(sizes), 1) for size in sizes], ops)

    @property
    def share(self) -> Any:
        """The sum of all shares."""
        return sum(self.shares)

    @property
    def weights(self) -> Sequence[Any]:
        """The factor by which each micro-batch's loss is multiplied in the loss of all of them."""
        if self.scales is None:
            return self.shares
        return [share * scale for share, scale in zip(self.shares, self.scales, strict=True)]

    def loss_of(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the loss, `()`, from the examples' losses, (B,) per micro-batch."""
        each = zip(self.batches, self.weights, losses, strict=True)
        return torch.as_tensor(sum(w * self.ops.loss_of(batch, one) for batch, w, one in each))

    def over(self, divisor: Any) -> Data:
        """Return the same micro-batches with their shares divided by a number."""
        return replace(self, shares=[ratio(share, divisor) for share in self.shares])

    def select(self, positions: Sequence[Tensor]) -> Data:
        """Return the examples at (K,) positions per micro-batch, scaled to the share of all."""
        return self._rescaled(list(enumerate(positions)))

    def beginnings(self, fraction: float) -> Data:
        """Return the first examples of each micro-batch, scaled to the share of all.

        There are ceil(fraction B) of them, and as many more as it takes to include one that counts.
        """
        return self._rescaled([(i, self._beginning(i, fraction)) for i in range(len(self.batches))])

    def _beginning(self, i: int, fraction: float) -> slice:
        batch, size = self.batches[i], self.ops.size(self.batches[i])
        first = beginning(size, fraction)
        # A beginning whose labels are all ignored has no mean loss, so it grows until it has one.
        while first.stop < size and not self.ops.denominator(self.ops.take(batch, first)):
            first = slice(0, first.stop + 1)
        return first

    def groups(self, count: int | None) -> list[Data]:
        """Return contiguous groups of the examples, whose shares add up to the share of all.

        Args:
            count: the number of groups; None makes a group of every micro-batch.
        """
        if count is None:
            return [self._cut([(i, None)]) for i in range(len(self.batches))]
        sizes = [self.ops.size(batch) for batch in self.batches]
        return [self._cut(group) for group in contiguous_groups(sizes, count)]

    def _cut(self, cuts: Sequence[Cut]) -> Data:
        """Return some of the examples, each with the share that it has in this data."""
        batches, shares, scales = [], [], []
        for i, index in cuts:
            whole, weight = self.batches[i], self.ops.denominator(self.batches[i])
            part = self.ops.take(whole, index)
            batches.append(part)
            shares.append(self.shares[i] * ratio(self.ops.denominator(part), weight))
            # Data may be cut twice (a group, then a selection of it), so the factors multiply.
            before = 1.0 if self.scales is None else self.scales[i]
            scales.append(before * self.ops.scale(part, whole))
        return replace(self, batches=batches, shares=shares, scales=scales)

    def _rescaled(self, cuts: Sequence[Cut]) -> Data:
        cut = self._cut(cuts)
        factor = ratio(self.share, cut.share)
        return replace(cut, shares=[share * factor for share in cut.shares])


def examples(batch: Any) -> int:
    """Return B, the leading size of the labels, or else of the first tensor.

    A batch that holds no tensor is one example.

    Args:
        batch: a tensor of shape (B, ...), or a mapping, list or tuple that holds some.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        # Labels come first: other fields of vision models may lead with patches or boxes.
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

    Tensors of leading size B, and lists of that length inside the batch, are cut. Numbers, text,
    None and `()` tensors belong to the whole batch and stay. Mappings, tuples, and a list that is
    the batch itself, are rebuilt from their cut contents.

    Args:
        batch: a tensor of shape (B, ...), or a mapping, list or tuple that holds some.
        index: positions of shape (K,), or a slice.
        name: the name that an error message gives to the batch.

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
        kind: Any = type(value)  # keeps BatchEncoding's and BatchFeature's attribute access
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
        # A named tuple takes its fields one by one, a plain one takes an iterable.
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


def denominator(batch: Any, shifted: bool = False) -> Tensor | int:
    """Return the number of terms in a batch's mean loss: its labelled tokens, or its examples.

    Args:
        batch: a mapping with whole-number `labels` of shape (B, T), or anything else.
        shifted: whether the first token of each row is no target, as in a causal language model.

    Returns:
        The number of labels other than -100 as a `()` tensor, or the number of examples.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim < 2 or labels.is_floating_point():
        return examples(batch)
    if isinstance(batch.get("shift_labels"), Tensor):  # Trainer counts these, too
        return batch["shift_labels"].ne(IGNORED).sum()
    targets = labels[..., 1:] if shifted else labels
    return targets.ne(IGNORED).sum()


def ratio(part: Any, whole: Any) -> Any:
    """Return part / whole, or 0 if the whole is 0.

    Tensors are divided in float64 where the device has it, because shares in float32 would round a
    float64 loss. NaN stays NaN.
    """
    if not isinstance(part, Tensor) and not isinstance(whole, Tensor):
        return part / whole if whole else 0.0
    quotient = wide(part) / wide(whole)
    # The device decides: a look from the host would wait for all work that is queued on it.
    return torch.where(torch.as_tensor(whole, device=quotient.device) == 0, 0.0, quotient)


def wide(count: Any) -> Any:
    """Return a count as it is, or a tensor of counts in float64 where the device has it."""
    if not isinstance(count, Tensor):
        return count
    # MPS has no float64.
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


def beginning(size: int, fraction: float) -> slice:
    """Return the slice of the first ceil(fraction size) of `size` examples, at least one."""
    # 1e-9 keeps a product such as 0.07 * 100 = 7.000000000000001 from being rounded up to 8.
    return slice(0, max(math.ceil(fraction * size - 1e-9), 1))


def contiguous_groups(sizes: list[int], groups: int) -> list[list[Cut]]:
    """Cut batches into contiguous groups whose sizes differ by one example at most.

    Args:
        sizes: the number of examples in each batch; the batches are joined in this order.
        groups: the number of groups; there are never more groups than examples.

    Returns:
        For each group, the pairs (batch, slice of its examples).
    """
    total = sum(sizes)
    groups = max(min(groups, total), 1)
    ends = [total * (g + 1) // groups for g in range(groups)]
    cut: list[list[Cut]] = [[] for _ in ends]
    position = 0
    group = 0
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            # A batch may span several groups, and a group may span several batches.
            while ends[group] <= position:
                group += 1
            length = min(size - start, ends[group] - position)
            cut[group].append((i, slice(start, start + length)))
            start, position = start + length, position + length
    return cut
