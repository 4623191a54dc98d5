# SPDX-License-Identifier: Apache-2.0
"""Contexts that scale a Trainer's loss for a part of a batch, or compute it without a graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def scaled(trainer: Any, share: Any) -> Iterator[None]:
    """Surround the `training_step` of a part, whose loss counts with `share` in the update."""
    accelerator, steps = trainer.accelerator, trainer.current_gradient_accumulation_steps
    backward = accelerator.backward

    def multiplied(loss: Tensor, **more: Any) -> None:
        backward((loss * share).to(loss), **more)

    # One accumulation step, so that Trainer's own division does not come on top of the share.
    trainer.current_gradient_accumulation_steps, accelerator.backward = 1, multiplied
    try:
        yield
    finally:
        trainer.current_gradient_accumulation_steps = steps
        accelerator.backward = backward


@contextmanager
def without_graph(reentrant: bool) -> Iterator[None]:
    """Surround a forward without a graph, about which reentrant checkpointing would warn."""
    with torch.no_grad():
        if not reentrant:
            yield
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            yield
