# SPDX-License-Identifier: Apache-2.0
"""`Weighting`: how the losses of parts of a batch make up the loss of the whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..landscape.data import IGNORED, ratio, wide

LABELS = ("shift_labels", "labels")
"""The fields in which Trainer counts labels; the first one that exists is used."""

WORDS = {
    "examples": "its examples",
    "labels": "its labels other than -100",
    "targets": "its labels other than -100 without the first of each row",
}
"""The things that a loss may be a mean over, in words for messages."""


@dataclass(frozen=True)
class Weighting:
    """The rule by which the losses of parts of a batch make up the loss of the whole.

    A part has the share `count(part) / count(whole)` of the whole. If the loss is a mean, the
    part's loss counts with that share, and estimates the whole's loss as it is. If the loss is a
    sum, the part's loss counts in full, and estimates the whole's when divided by the share.

    Attributes:
        by: the thing that is counted, a key of `WORDS`.
        summed: whether the loss is a sum and not a mean.
        smallest: the least number of examples that have a loss of their own.
        ignored: a label that the loss leaves out beside -100, as in segmentation.

    Example:
        >>> batch = {"labels": torch.tensor([[1, 2], [3, -100]])}
        >>> int(Weighting("labels").count(batch, 2)), Weighting("examples").count(batch, 2)
        (3, 2)
    """

    by: str = "examples"
    summed: bool = False
    smallest: int = 1
    ignored: int | None = None

    def count(self, inputs: Any, size: int) -> Tensor | int:
        """Return the count of a batch of `size` examples: their number, or a `()` tensor."""
        counted = self._counted(inputs)
        return size if counted is None else counted.sum()

    def counts(self, inputs: Any, size: int) -> Tensor:
        """Return the count of each of the `size` examples of a batch, (B,), in wide numbers."""
        counted = self._counted(inputs)
        if counted is None or len(counted) % max(size, 1):
            return torch.ones(size, dtype=torch.float64)
        # Where the labels are: whoever looks at the values waits for the device, nobody else.
        return wide(counted.reshape(size, -1).sum(1))

    def scale(self, part: Any, whole: Any) -> Any:
        """Return the factor that makes a part's loss estimate the whole's, from their counts."""
        return ratio(whole, part) if self.summed else 1.0

    def loss_of(self, inputs: Any, losses: Tensor) -> Tensor:
        """Return the batch's loss, `()`, from the losses of its examples, (B,)."""
        if self.summed:
            return losses.sum()
        counts = self.counts(inputs, len(losses)).to(losses)
        return (losses * counts).sum() / counts.sum()

    def filled(self, inputs: Any) -> Any:
        """Return the inputs; if no label counts, all of their labels become 0.

        The mean over no labels is NaN, and so is its gradient. The share of such a part is zero,
        and with valid labels zero times its loss is zero.
        """
        counted = None if self.summed else self._counted(inputs)
        if counted is None:
            return inputs
        # The device decides, so that the host does not wait for it.
        filled, some = copy.copy(inputs), counted.any()
        for name in LABELS:
            if isinstance(inputs.get(name), Tensor):
                filled[name] = torch.where(some, inputs[name], torch.zeros_like(inputs[name]))
        return filled

    def _counted(self, inputs: Any) -> Tensor | None:
        """Return a mask of the labels that count, or None if examples are counted."""
        labels = labels_of(inputs)
        if self.by == "examples" or labels is None:
            return None
        if self.by == "targets" and labels is inputs.get("labels"):
            labels = labels[..., 1:]
        counted = labels.ne(IGNORED)
        return counted if self.ignored is None else counted & labels.ne(self.ignored)


def labels_of(inputs: Any) -> Tensor | None:
    """Return the labels that Trainer counts, or None if there are none."""
    if not isinstance(inputs, Mapping):
        return None
    for name in LABELS:
        labels = inputs.get(name)
        if isinstance(labels, Tensor) and labels.ndim:
            return labels
    return None


def candidates(inputs: Any, *, counted: bool, shifted: bool, config: Any) -> list[Weighting]:
    """Return the weightings that a loss of these inputs may follow, the likeliest first.

    Args:
        inputs: a batch.
        counted: whether the loss gets a count of the labels.
        shifted: whether Trainer counts the labels from the second one of each row on.
        config: the model's configuration, which may name a label that is left out.
    """
    labels, by_examples = labels_of(inputs), Weighting("examples")
    if labels is None:
        return [by_examples, Weighting("examples", summed=True)]
    ignored = getattr(config, "semantic_loss_ignore_index", None) if labels.ndim > 2 else None
    words = ["labels"] if labels.ndim == 1 else ["labels", "targets"]
    if shifted:
        words.reverse()
    by_labels = [Weighting(by, ignored=ignored) for by in words]
    # A mean over real numbers includes -100, unless Trainer passes a count of labels.
    numbers = labels.is_floating_point() and not counted
    likeliest = [by_examples, *by_labels] if numbers else [*by_labels, by_examples]
    return [*likeliest, Weighting("examples", summed=True)]
