# SPDX-License-Identifier: Apache-2.0
"""Sharpness of the training loss on the same few examples, for every method alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..sharpness import sharpness

RHO = 0.05


class FixedSharpness:
    """Measures loss(w + 0.05 g/|g|) - loss(w) in eval mode on the first training examples.

    The `sam/sharpness` of the log is none to compare methods by: each has its own radius and
    batches, and `none` has nothing of the kind.

    Args:
        examples: how many; 0 measures nothing.

    Attributes:
        why_not: why nothing is measured any more, empty as long as it is.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.why_not = "" if examples else "not asked for"
        self._batches: list[Any] = []

    def __call__(self, args: Any, model: torch.nn.Module, loader: Any) -> float | None:
        """Return the sharpness, None where it cannot be measured.

        Args:
            args: the Trainer's arguments.
            model: as it stands; unchanged afterwards.
            loader: of the training examples.
        """
        if args.world_size > 1:
            self.why_not = "only one process can measure it"
        if self.why_not:
            return None
        try:
            with _same_randomness():
                self._batches = self._batches or self._first(args, loader)
                return sharpness(model, self._batches, RHO).sharpness
        except Exception as error:  # whatever a model does here must not cost the run
            self.why_not = f"{type(error).__name__}: {error}"
            return None

    def _first(self, args: Any, loader: Any) -> list[Any]:
        size = args.per_device_train_batch_size
        count = min(self.examples, len(loader.dataset))
        rows = [loader.dataset[row] for row in range(count)]
        batches = [loader.collate_fn(rows[at : at + size]) for at in range(0, count, size)]
        return [{k: _on(v, args.device) for k, v in batch.items()} for batch in batches]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leave every generator as it was, so that the training is the same with and without us."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
