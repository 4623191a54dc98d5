# SPDX-License-Identifier: Apache-2.0
"""Sharpness of the training loss on the same few examples, while a model is trained."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..sharpness import sharpness

RHO = 0.05
logger = logging.getLogger(__name__)


class SharpnessCallback(TrainerCallback):
    """Measures the sharpness of the training loss on the same examples, over a whole training.

    It works in any Trainer, with a SAM method or without one. The measurement is made in eval mode;
    weights, gradients and random streams are afterwards what they were, so that the training is the
    same with and without it. The log history gets entries with `sharpness`, the loss's rise within
    the radius. If it cannot be measured, it says so once, and the training goes on.

    Args:
        every: updates between two measurements; None measures at each evaluation.
        examples: how many of the training examples, from the first one.
        rho: see `hf_sam.sharpness.sharpness`, as for `steps` and `adaptive`.
        steps: ascent steps.
        adaptive: whether the radius is relative to the weights.

    Raises:
        ValueError: `every` or `examples` is not a whole number from 1.

    Example:
        >>> from hf_sam.callbacks import SharpnessCallback
        >>> callback = SharpnessCallback(every=100, examples=32)
    """

    def __init__(
        self,
        every: int | None = None,
        examples: int = 64,
        rho: float = RHO,
        steps: int = 1,
        adaptive: bool = False,
    ) -> None:
        for name, value in (("every", every), ("examples", examples)):
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"SharpnessCallback: {name}={value}: give a whole number from 1")
        self._every = every
        self._measure = FixedSharpness(examples, rho=rho, steps=steps, adaptive=adaptive)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after every so many updates."""
        if self._every is not None and state.global_step % self._every == 0:
            self._note(args, state, **kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure at an evaluation, if no number of updates was given."""
        if self._every is None:
            self._note(args, state, **kwargs)

    def _note(self, args: Any, state: Any, **kwargs: Any) -> None:
        if kwargs.get("train_dataloader") is None or self._measure.why_not:
            return
        found = self._measure(args, kwargs["model"], kwargs["train_dataloader"])
        if found is None:
            logger.warning(f"The sharpness cannot be measured: {self._measure.why_not}.")
            return
        place = {"epoch": state.epoch, "step": state.global_step}
        state.log_history.append({"sharpness": found, **place})


class FixedSharpness:
    """Measures the sharpness in eval mode on the first training examples, by default at 0.05.

    The `sam/sharpness` of the log is none to compare methods by: each has its own radius and
    batches, and `none` has nothing of the kind.

    Args:
        examples: how many; 0 measures nothing.
        rho: the radius.
        **how: further arguments of `hf_sam.sharpness.sharpness`.

    Attributes:
        why_not: why nothing is measured any more, empty as long as it is.
    """

    def __init__(self, examples: int, rho: float = RHO, **how: Any) -> None:
        self.examples, self._rho, self._how = examples, rho, how
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
                return sharpness(model, self._batches, self._rho, **self._how).sharpness
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
