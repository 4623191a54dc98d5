# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a Trainer's loss of a batch, without dropout and without side effects."""

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
    """Evaluates losses; all processes use the value of the first one.

    Args:
        trainer: the Trainer.
        passes: the object that runs its loss.

    Attributes:
        ops: the operations that count and cut batches of any size.
    """

    def __init__(self, trainer: Any, passes: Any) -> None:
        self._trainer, self._passes = trainer, passes
        self.ops = TrainerOps(Weighting(), getattr(trainer, "take", None))
        self._replay = trainer._run.new_replay(random=True)

    def loss(
        self, batch: Batch, index: slice | None, num_items: Any, seed: int | None = None
    ) -> float:
        """Return the loss of some examples of a batch, or NaN if they have no loss.

        Args:
            batch: the batch.
            index: the examples; None for all of them.
            num_items: not None if Trainer counts items for the loss.
            seed: a seed for other random numbers than the present ones.
        """
        part = self.ops.take(batch, index)
        try:
            with self.no_trace(), WithoutDropout():
                if seed is not None:
                    set_seed(seed)
                loss = float(self._passes.ask(part, num_items)[0])
        except Exception:  # a model may refuse a small batch with any error
            if index is None:
                raise
            loss = math.nan
        return self.agreed(loss)  # rounding may differ, and all processes must decide alike

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround an evaluation, after which all state is as it was before."""
        with self._replay.no_trace():
            yield

    def agreed(self, value: Any) -> Any:
        """Return the first process's value on all processes."""
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
    """A context in which dropout is the identity, in training mode and in eval mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, with dropout replaced by the identity."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        # Attention has dropout inside, at the fifth position or by name.
        if func is functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            elif "dropout_p" in kwargs:
                kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)
