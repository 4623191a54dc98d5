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
"""Fields that Trainer counts labels in; the first one that is there."""

WORDS = {
    "examples": "its examples",
    "labels": "its labels other than -100",
    "targets": "its labels other than -100 without the first of each row",
}
"""What a batch may be counted by, in words."""


@dataclass(frozen=True)
class Weighting:
    """The rule by which the losses of parts of a batch make up the loss of the whole.

    A part has the share `count(part) / count(whole)` of the whole. A mean counts in the whole with
    that share, and stands for the whole as it is; a sum counts in full, and stands for the whole
    divided by that share.

    Attributes:
        by: what is counted; a key of `WORDS`.
        summed: the loss is a sum, not a mean.
        smallest: the fewest examples whose loss means anything.
        ignored: a label that the loss leaves out beside -100, as segmentation does.

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
        """Return what a batch of `size` examples counts: their number, or a `()` tensor."""
        counted = self._counted(inputs)
        return size if counted is None else counted.sum()

    def counts(self, inputs: Any, size: int) -> Tensor:
        """Return what each of the `size` examples of a batch counts, (B,), in wide numbers."""
        counted = self._counted(inputs)
        if counted is None or len(counted) % max(size, 1):
            return torch.ones(size, dtype=torch.float64)
        # Where the labels are: whoever looks at the values waits for the device, nobody else.
        return wide(counted.reshape(size, -1).sum(1))

    def scale(self, part: Any, whole: Any) -> Any:
        """Return the factor with which a part's loss stands for the whole's, from their counts."""
        return ratio(whole, part) if self.summed else 1.0

    def loss_of(self, inputs: Any, losses: Tensor) -> Tensor:
        """Return the batch's loss, `()`, from the losses of its examples, (B,)."""
        if self.summed:
            return losses.sum()
        counts = self.counts(inputs, len(losses)).to(losses)
        return (losses * counts).sum() / counts.sum()

    def filled(self, inputs: Any) -> Any:
        """Return the inputs, with labels of 0 in place of all if there are none to count.

        The mean over no labels is not a number, nor is its gradient. A part without labels counts
        nothing, and nothing times a number is nothing. The device decides; nobody waits for it.
        """
        counted = None if self.summed else self._counted(inputs)
        if counted is None:
            return inputs
        filled, some = copy.copy(inputs), counted.any()
        for name in LABELS:
            if isinstance(inputs.get(name), Tensor):
                filled[name] = torch.where(some, inputs[name], torch.zeros_like(inputs[name]))
        return filled

    def _counted(self, inputs: Any) -> Tensor | None:
        """Return which labels count, of the labels' shape; None where examples do."""
        labels = labels_of(inputs)
        if self.by == "examples" or labels is None:
            return None
        if self.by == "targets" and labels is inputs.get("labels"):
            labels = labels[..., 1:]
        counted = labels.ne(IGNORED)
        return counted if self.ignored is None else counted & labels.ne(self.ignored)


def labels_of(inputs: Any) -> Tensor | None:
    """Return the labels that Trainer counts, of one row or more; None where there are none."""
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
        counted: the loss gets a count of the labels.
        shifted: Trainer counts the labels from the second of each row on.
        config: the model's configuration, which may name a label to be left out.
    """
    labels, by_examples = labels_of(inputs), Weighting("examples")
    if labels is None:
        return [by_examples, Weighting("examples", summed=True)]
    ignored = getattr(config, "semantic_loss_ignore_index", None) if labels.ndim > 2 else None
    words = ["labels"] if labels.ndim == 1 else ["labels", "targets"]
    if shifted:
        words.reverse()
    by_labels = [Weighting(by, ignored=ignored) for by in words]
    # A mean over numbers takes all of them, -100 too; a count says what is counted.
    numbers = labels.is_floating_point() and not counted
    likeliest = [by_examples, *by_labels] if numbers else [*by_labels, by_examples]
    return [*likeliest, Weighting("examples", summed=True)]
