# SPDX-License-Identifier: Apache-2.0
"""Which optimizers and engines are refused at start-up, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import DistributedType
from transformers.training_args import ParallelMode


@dataclass(frozen=True)
class EngineRow:
    """One way of running a model, and whether SAM is right there."""

    name: str
    methods: str
    why: str
    found: Callable[[Any], bool]


def _distributed(*kinds: str) -> Callable[[Any], bool]:
    return lambda trainer: (
        trainer.accelerator.distributed_type in [getattr(DistributedType, k, None) for k in kinds]
    )


def _size(name: str) -> Callable[[Any], bool]:
    return lambda trainer: getattr(trainer, f"get_{name}_size", lambda: 1)() > 1


ENGINES = (
    EngineRow(
        "DeepSpeed",
        "none yet",
        "its engine keeps gradients and weights to itself, so SAM would silently not "
        "happen; use DDP",
        lambda t: t.is_deepspeed_enabled or _distributed("DEEPSPEED")(t),
    ),
    EngineRow(
        "FSDP",
        "none yet",
        "parameters are sharded; use DDP",
        lambda t: (
            t.is_fsdp_enabled
            or bool(t.args.fsdp)
            or getattr(t, "is_distributed_loading_by_transformers", False)
        ),
    ),
    EngineRow("tensor parallelism", "none yet", "parameters are sharded; use DDP", _size("tp")),
    EngineRow(
        "context or sequence parallelism",
        "none yet",
        "a batch is spread over ranks; use DDP",
        lambda t: _size("cp")(t) or _size("sp")(t),
    ),
    EngineRow(
        "DataParallel (several GPUs in one process)",
        "none yet",
        "replicas are made anew in each pass; start one "
        "process per GPU: accelerate launch --multi_gpu, or torchrun --nproc_per_node N",
        lambda t: t.args.parallel_mode == ParallelMode.NOT_DISTRIBUTED and t.args.n_gpu > 1,
    ),
    EngineRow(
        "Megatron-LM", "none", "its backward is its own; use DDP", _distributed("MEGATRON_LM")
    ),
    EngineRow("XLA", "none", "not proven; use CPU or GPU", _distributed("XLA", "TPU")),
)


def check_engine(trainer: Any) -> None:
    """Refuse an engine under which a method would be wrong.

    Raises:
        NotImplementedError: the engine's name, the reason, and what to use instead.
    """
    for row in ENGINES:
        if row.found(trainer):
            raise NotImplementedError(
                f"hf_sam does not support {row.name} here ({row.methods}): {row.why}"
            )


UPDATE_IN_BACKWARD = "it updates the weights inside backward, so there is no gradient to hand over"
NEEDS_CLOSURE = (
    "its step() evaluates the loss itself through a closure, which Trainer does not give"
)


def check_optimizer(optimizer: Any, args: Any) -> None:
    """Refuse an optimizer that leaves no room for a second gradient.

    Args:
        optimizer: the optimizer, or None where only its name (`args.optim`) is known yet.
        args: the training arguments.

    Raises:
        ValueError: the optimizer's name and the reason.
    """
    name = str(getattr(args.optim, "value", args.optim))
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    kind = type(optimizer).__name__
    reason = None
    if (
        "lomo" in name.lower()
        or "layerwise" in name.lower()
        or "lomo" in kind.lower()
        or kind == "LayerWiseDummyOptimizer"
    ):
        reason = UPDATE_IN_BACKWARD
    elif optimizer is not None and _wants_closure(optimizer):
        reason = NEEDS_CLOSURE
    if reason:
        raise ValueError(
            f"optim={name!r} ({kind}) does not work with SAM: {reason}; use for example optim='adamw_torch'"
        )


def _wants_closure(optimizer: Any) -> bool:
    step = inspect.signature(type(optimizer).step).parameters
    return "closure" in step and step["closure"].default is inspect.Parameter.empty
