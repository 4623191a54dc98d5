# SPDX-License-Identifier: Apache-2.0
"""The micro-batches of one update from Trainer, and the operations that cut and draw batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening, Trainer

from ..landscape import Data, Replay
from ..landscape.data import examples, take, wide
from .records import Records
from .weighting import Weighting


@dataclass(frozen=True)
class Batch:
    """Inputs of the model, with their origin.

    Attributes:
        inputs: the argument of `compute_loss`.
        whole: whether this is a micro-batch of the window as it came, which Trainer itself scales.
        part: whether these are some of a micro-batch's examples.
        drawn: whether this is an example from outside the window.
    """

    inputs: Any
    whole: bool = True
    part: bool = False
    drawn: bool = False


class Window:
    """The micro-batches of one update, which are collected one by one.

    Args:
        size: the number of micro-batches in the update.
        num_items: Trainer's count of items in all of them and on all ranks, or None.
    """

    def __init__(self, size: int, num_items: Any = None) -> None:
        self.size = size
        self.num_items = num_items
        self.batches: list[Batch] = []

    def add(self, inputs: Any) -> bool:
        """Add one micro-batch, and return whether the window is full."""
        self.batches.append(Batch(inputs))
        return len(self.batches) == self.size


class TrainerOps:
    """Counts, weighs and cuts batches of a Trainer.

    An example may have several rows of a batch, the same number for each example, as pairs for
    preference optimization do. The `cut` of the Trainer class then shows how many.

    Args:
        weighting: the rule by which the losses of parts make up the loss of the whole.
        cut: a function that replaces `take(inputs, index)`, from a Trainer class that defines one.
    """

    def __init__(self, weighting: Weighting, cut: Callable[[Any, Any], Any] | None = None) -> None:
        self.weighting = weighting
        self._cut = cut or take

    def size(self, batch: Batch) -> int:
        """Return the number of examples, B."""
        rows = examples(batch.inputs)
        if self._cut is take:
            return rows
        # One example, cut out, shows how many rows each example has.
        return rows // max(examples(self._cut(batch.inputs, slice(0, 1))), 1)

    def denominator(self, batch: Batch) -> Tensor | int:
        """Return the number of labels, or of examples, as the loss weighs them."""
        return self.weighting.count(batch.inputs, self.size(batch))

    def scale(self, part: Batch, whole: Batch) -> Any:
        """Return the factor that makes a part's loss estimate the whole's."""
        return self.weighting.scale(self.denominator(part), self.denominator(whole))

    def loss_of(self, batch: Batch, losses: Tensor) -> Tensor:
        """Return the batch's loss, `()`, from the losses of its examples, (B,)."""
        return self.weighting.loss_of(batch.inputs, losses)

    def take(self, batch: Batch, index: Tensor | slice | None) -> Batch:
        """Return the batch of the chosen examples, or of all examples for None.

        Raises:
            ValueError: there are too few examples for a loss of their own.
        """
        if index is None:
            return Batch(batch.inputs, whole=False, part=batch.part)
        part = Batch(self._cut(batch.inputs, index), whole=False, part=True)
        if self.weighting.smallest > 1:
            self._check_size(self.size(part), self.size(batch))
        return part

    def _check_size(self, part: int, whole: int) -> None:
        smallest = self.weighting.smallest
        if part < min(smallest, whole):
            raise ValueError(
                f"a group of {part} of a batch's {whole} examples has no loss of its own (batch "
                f"norm and contrastive losses need several); the smallest group that works has "
                f"{smallest}: use a larger per_device_train_batch_size with "
                "dataloader_drop_last=True, fewer or larger groups (micro_batches, gamma, "
                "ascent_fraction), or a method that takes whole batches, such as sam='sam'"
            )


def data_of(window: Window, ops: TrainerOps, items: Weighting, world: int) -> Data:
    """Return the window's micro-batches with the share that Trainer gives to each one's loss.

    If Trainer counts items, the share is the micro-batch's count divided by the count of all, times
    the world size by which averaging over ranks divides. The mean loss of a micro-batch without
    labels is NaN, and so is its share.

    Args:
        window: the micro-batches.
        ops: the operations that cut them.
        items: the rule by which Trainer counts items.
        world: the number of ranks whose items Trainer has counted.
    """
    batches = window.batches
    if window.num_items is None:
        return Data(batches, [_one(ops.denominator(b)) / len(batches) for b in batches], ops)
    total = wide(torch.as_tensor(window.num_items))
    shares = [world * wide(items.count(b.inputs, ops.size(b))) / total for b in batches]
    return Data(batches, shares, ops)


def _one(count: Any) -> Any:
    """Return 1, or NaN as a tensor if the count is zero."""
    return wide(count) / wide(count) if isinstance(count, Tensor) else 1.0


def check_cuttable(trainer: Trainer, method: str) -> None:
    """Refuse to select examples if the rows of a batch are not examples.

    Raises:
        NotImplementedError: the Trainer class computes its own loss, or the collator packs rows.
    """
    if hasattr(trainer, "take"):
        return
    owner = next(
        c
        for c in type(trainer).__mro__
        if "compute_loss" in vars(c) and not c.__module__.startswith("hf_sam.")
    )
    if owner is not Trainer:
        raise NotImplementedError(
            f"{method} selects examples of a batch, and {owner.__name__}.compute_loss may read "
            "rows in another way: give the class a method take(inputs, index) that returns the "
            "chosen examples' inputs, or use sam='sam'"
        )
    if isinstance(trainer.data_collator, DataCollatorWithFlattening):
        raise NotImplementedError(
            f"{method} selects examples of a batch, and DataCollatorWithFlattening packs them "
            "into one row: use a padding collator, or sam='sam'"
        )


def check_drawable(loader: Any, method: str) -> None:
    """Refuse to draw training examples if the data cannot be drawn from.

    Raises:
        ValueError: the training data has no length, or its items are whole batches.
    """
    if getattr(loader, "batch_sampler", loader) is None and hasattr(loader.dataset, "__len__"):
        raise ValueError(
            f"{method} draws training examples, and a DataLoader with batch_size=None holds whole "
            "batches: give a dataset of examples, or use another method, such as sam='ssam_d'"
        )
    if not hasattr(getattr(loader, "dataset", None), "__len__"):
        raise ValueError(
            f"{method} draws training examples, and an iterable dataset cannot be drawn from: give "
            "a dataset with a length, or use another method, such as sam='ssam_d'"
        )


def draw(trainer: Any, engine: Any, n: int, generator: torch.Generator) -> list[Batch]:
    """Draw n training examples, equally on all ranks, as batches of one.

    Returns:
        The examples that the engine assigns to this rank.
    """
    loader = trainer.callback_handler.train_dataloader
    data = loader.dataset
    chosen = torch.randint(len(data), (n,), generator=generator).tolist()
    makers = (SimpleNamespace(collate=loader.collate_fn), trainer.data_collator, data)
    # Their generators and counters belong to the updates' batches, so drawing must not move them.
    stores = [Records(maker, settled=True) for maker in makers if hasattr(maker, "__dict__")]
    with Replay(stores).no_trace():
        batches = [loader.collate_fn([data[i]]) for i in engine.mine(chosen)]
    return [Batch(trainer._prepare_inputs(copy.copy(b)), whole=False, drawn=True) for b in batches]
