# SPDX-License-Identifier: Apache-2.0
"""Asking a Trainer for the loss of a batch, without dropout and without leaving a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import set_seed

from .weighting import Weighting
from .window import Batch, TrainerOps


class Asking:
    """Asks for losses, of which the first process decides for all.

    Args:
        trainer: the Trainer.
        passes: what runs its loss.

    Attributes:
        ops: how batches are counted and cut, of any size.
    """

    def __init__(self, trainer: Any, passes: Any) -> None:
        self._trainer, self._passes = trainer, passes
        self.ops = TrainerOps(Weighting(), getattr(trainer, "take", None))
        self._replay = trainer._run.new_replay(random=True)

    def loss(
        self, batch: Batch, index: slice | None, num_items: Any, seed: int | None = None
    ) -> float:
        """Return the loss of a part, not a number where it has none; of all of the batch for None.

        Args:
            batch: the batch.
            index: which of its examples.
            num_items: not None if Trainer counts items for the loss.
            seed: of other random numbers than those of now.
        """
        part = self.ops.take(batch, index)
        try:
            with self.no_trace(), WithoutDropout():
                if seed is not None:
                    set_seed(seed)
                loss = float(self._passes.ask(part, num_items)[0])
        except Exception:  # whatever a model says to a batch of one
            if index is None:
                raise
            loss = math.nan
        return self.agreed(loss)

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround a question, which nothing may remember."""
        with self._replay.no_trace():
            yield

    def agreed(self, value: Any) -> Any:
        """Return what the first process says."""
        if self._trainer.accelerator.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]


DROPOUTS = frozenset({
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
    torch.dropout,
})


class WithoutDropout(TorchFunctionMode):
    """A context in which no dropout drops anything, whatever mode a model is in."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch; see the class."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            elif "dropout_p" in kwargs:
                kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)
