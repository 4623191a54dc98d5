# SPDX-License-Identifier: Apache-2.0
"""Contexts around a Trainer's loss: scaled for a part, without a graph, or another one."""

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
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object an attribute of its own inside the block, in place of its class's."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


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
