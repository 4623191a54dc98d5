# SPDX-License-Identifier: Apache-2.0
"""The engine for the way in which a Trainer runs its model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .replay import Replay
from .sharding import AcceleratedEngine
from .support import is_fsdp2


def engine_for(
    trainer: Any, model: nn.Module, replay: Replay, local_ascent: bool, reentrant: bool
) -> AcceleratedEngine:
    """Return the engine that runs the model as accelerate prepared it.

    Args:
        trainer: the Trainer.
        model: the prepared model.
        replay: random numbers and statistics.
        local_ascent: whether a gradient that only serves to perturb may stay a rank's own.
        reentrant: activations are checkpointed in the mode that computes all gradients or none.
    """
    if is_fsdp2(trainer):
        from .fsdp2 import ShardedEngine

        return ShardedEngine(trainer.accelerator, model, replay)
    if trainer.is_deepspeed_enabled:
        from .zero import DeepSpeedEngine

        return DeepSpeedEngine(trainer.accelerator, model, replay, local_ascent)
    return AcceleratedEngine(trainer.accelerator, model, replay, local_ascent, reentrant)
