# SPDX-License-Identifier: Apache-2.0
"""Choice of the engine for the way in which a Trainer runs its model, and refusals at start-up."""

from __future__ import annotations

import inspect
import os
from typing import Any

from accelerate import DistributedType
from torch import distributed, nn
from transformers import TrainingArguments

from ..landscape import Replay
from .accelerated import AcceleratedEngine
from .table import ENGINES, is_fsdp2, is_zero3


def engine_for(
    trainer: Any, model: nn.Module, replay: Replay, local_ascent: bool, reentrant: bool
) -> AcceleratedEngine:
    """Return the engine that runs the model as accelerate prepared it.

    Args:
        trainer: the Trainer.
        model: the prepared model.
        replay: the state that later passes of an update repeat.
        local_ascent: whether each rank may keep a gradient of its own if it only perturbs with it.
        reentrant: whether activations are checkpointed in the mode that computes all gradients or
            none.
    """
    # Imported here: DTensor and DeepSpeed take a while to load, and few runs need them.
    if is_fsdp2(trainer):
        from .fsdp2 import ShardedEngine

        return ShardedEngine(trainer.accelerator, model, replay)
    if trainer.is_deepspeed_enabled:
        from .zero import DeepSpeedEngine
        from .zero3 import PartitionedEngine

        if is_zero3(trainer):
            return PartitionedEngine(trainer.accelerator, model, replay, local_ascent)

        return DeepSpeedEngine(trainer.accelerator, model, replay, local_ascent)
    return AcceleratedEngine(trainer.accelerator, model, replay, local_ascent, reentrant)


def check_processes(args: TrainingArguments) -> None:
    """Refuse processes that would not train together, although they were started to.

    This is called before Trainer gets the model, because FSDP's launcher lets some processes load
    nothing but the shapes of the weights.

    Raises:
        ValueError: accelerate finds no devices on which they train together, or over which they
            shard.
    """
    state = args.distributed_state
    if state is None:
        return
    started = distributed.get_world_size() if distributed.is_initialized() else 1
    if started > state.num_processes == 1:
        raise ValueError(
            f"use_cpu={args.use_cpu}: {started} processes were started, but there is no GPU for "
            "them, so each would train a model of its own; to train on CPU together give "
            "use_cpu=True (--use_cpu), or start one process"
        )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ValueError(
            "distributed_type=FSDP of accelerate's configuration needs a GPU for each process, and "
            f"this one runs on {state.device.type}, where the weights would not be sharded; use "
            "DistributedConfig(fsdp_size=n) at from_pretrained, or accelerate_configs/ddp_cpu.yaml"
        )


def check_engine(trainer: Any) -> None:
    """Refuse an engine under which a method would be wrong.

    Raises:
        NotImplementedError: the engine is refused; the message gives its name, the reason, and what
            to use instead.
        ValueError: each rank should perturb along a gradient of its own, which does not exist.
    """
    for row in ENGINES:
        if row.applies is not None and row.applies(trainer):
            raise NotImplementedError(f"hf_sam does not support {row.name}: {row.why}")
    if getattr(trainer.args, "sam_ascent_sync", "auto") == "local" and is_fsdp2(trainer):
        raise ValueError(
            "sam_ascent_sync='local' is not possible under FSDP2: every backward averages over "
            "ranks, so none has a gradient of its own; use 'auto' or 'global'"
        )


UPDATE_IN_BACKWARD = "it updates the weights inside backward, so there is no gradient to hand over"
NEEDS_CLOSURE = (
    "its step() evaluates the loss itself through a closure, which Trainer does not give"
)
ANOTHER_SAM = "it is a SAM of its own, which Trainer does not drive; give its base optimizer alone"


def check_optimizer(optimizer: Any, args: Any) -> None:
    """Refuse an optimizer that leaves no room for a second gradient.

    Args:
        optimizer: the optimizer, or None if only its name (`args.optim`) is known yet.
        args: the training arguments.

    Raises:
        ValueError: the optimizer does not work; the message gives its name, the reason, and what to
            use instead.
    """
    while hasattr(optimizer, "optimizer"):  # accelerate's and other wrappers
        optimizer = optimizer.optimizer
    name = str(getattr(args.optim, "value", args.optim)) if optimizer is None else ""
    kind = type(optimizer).__name__
    label = f"optim={name!r}" if optimizer is None else f"The optimizer {kind}"
    known = f"{name} {kind}".lower()  # before it is made, only the name of an optimizer is known
    reason = None
    if "lomo" in known or "layerwise" in known:
        reason = UPDATE_IN_BACKWARD
    elif optimizer is not None and hasattr(optimizer, "first_step"):
        reason = ANOTHER_SAM
    elif optimizer is not None and _wants_closure(optimizer):
        reason = NEEDS_CLOSURE
    if reason:
        raise ValueError(
            f"{label} does not work with SAM: {reason}; use for example optim='adamw_torch'"
        )


def _wants_closure(optimizer: Any) -> bool:
    step = inspect.signature(type(optimizer).step).parameters
    return "closure" in step and step["closure"].default is inspect.Parameter.empty
