# SPDX-License-Identifier: Apache-2.0
"""The table of ways to run a model: those that SAM works with, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import DistributedType
from transformers.training_args import ParallelMode

Condition = Callable[[Any], bool]


@dataclass(frozen=True)
class EngineRow:
    """One way of running a model, and whether SAM works with it.

    Attributes:
        name: the user's name for it.
        methods: "all" if all methods work, their keys if some do, or "refused", which includes
            sam="none" unless the row's name says otherwise.
        why: what the user should know, or why it is refused and what to use instead.
        applies: a function that returns whether a trainer runs this way; None for ways that are
            supported.
    """

    name: str
    methods: str
    why: str
    applies: Condition | None = None


def _distributed(kind: str) -> Condition:
    return lambda t: t.accelerator.distributed_type == getattr(DistributedType, kind)


def _mode(*kinds: ParallelMode) -> Condition:
    return lambda t: t.args.parallel_mode in kinds


def _parallelism(*names: str) -> Condition:
    """Return the condition that accelerate's ParallelismConfig has one of these sizes above 1."""

    def applies(trainer: Any) -> bool:
        config = getattr(trainer.accelerator, "parallelism_config", None)
        return any((getattr(config, f"{name}_size", None) or 1) > 1 for name in names)

    return applies


def _loaded(*names: str) -> Condition:
    """Return the condition that `distributed_config` had one of these sizes above 1."""

    def applies(trainer: Any) -> bool:
        if not getattr(trainer, "is_distributed_loading_by_transformers", False):
            return False
        config = getattr(trainer.model.config, "distributed_config", None)
        return any((getattr(config, f"{name}_size", None) or 1) > 1 for name in names)

    return applies


def _plugin_version(trainer: Any) -> int | None:
    """Return the version of accelerate's FSDP plugin, or None without one."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return None if plugin is None else int(plugin.fsdp_version)


def is_fsdp2(trainer: Any) -> bool:
    """Return whether FSDP2 shards the parameters, applied by transformers or by accelerate."""
    return _loaded("fsdp", "dp_replicate")(trainer) or _plugin_version(trainer) == 2


def _deepspeed(is_such: Callable[[Any], bool]) -> Condition:
    """Return the condition that DeepSpeed runs the model with a plugin of a certain kind."""

    def applies(trainer: Any) -> bool:
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        return plugin is not None and is_such(plugin)

    return applies


is_zero3 = _deepspeed(lambda plugin: int(plugin.zero_stage) == 3)
"""Return whether DeepSpeed partitions the parameters of a trainer's model."""


def reentrant(trainer: Any) -> bool:
    """Return whether activations are checkpointed in the mode that computes all gradients or none.

    The arguments take effect when training begins. If they do not ask for checkpointing, the
    model's layers tell.
    """
    asked = vars(trainer.args)
    for name in ("activation_checkpointing", "gradient_checkpointing"):  # new and old name
        if asked.get(name):
            chosen = set(asked.get(f"{name}_kwargs") or {}) - TRANSFORMERS_OWN
            return bool(chosen) and _is_reentrant(asked[f"{name}_kwargs"])
    layers = (m for m in trainer.model.modules() if getattr(m, "gradient_checkpointing", False))
    calls = (getattr(layer, "_gradient_checkpointing_func", None) for layer in layers)
    return any(_is_reentrant(getattr(call, "keywords", {})) for call in calls)


TRANSFORMERS_OWN = {"every_n_layers", "offload"}
"""Keys of `activation_checkpointing_kwargs` that torch does not see; without any other one
transformers chooses the mode that is not reentrant."""


def _is_reentrant(kwargs: Mapping[str, Any]) -> bool:
    """Return whether torch uses the reentrant mode, which is its default."""
    given = kwargs.get("use_reentrant")
    return given is None or bool(given)


def _static_graph(trainer: Any) -> bool:
    handler = trainer.accelerator.ddp_handler
    return trainer.accelerator.num_processes > 1 and getattr(handler, "static_graph", False)


def _any(*ways: Condition) -> Condition:
    return lambda t: any(way(t) for way in ways)


PER_GPU = "start one process per GPU: accelerate launch --multi_gpu, or torchrun --nproc_per_node N"

ENGINES = (
    EngineRow("one process, on CPU or one GPU", "all", "proven on CPU"),
    EngineRow(
        "DDP (accelerate launch, torchrun)",
        "all",
        "each rank may ascend along its own gradient, which saves an all-reduce (sam_ascent_sync)",
    ),
    EngineRow("fp16 or bf16 autocast (fp16=True, bf16=True)", "all", "weights stay float32"),
    EngineRow("PEFT adapters", "all", "the adapter's trainable weights are perturbed"),
    EngineRow(
        "FSDP2 (accelerate_configs/fsdp2.yaml, DistributedConfig(fsdp_size=n))",
        "all",
        "one perturbation for all ranks: a gradient of a rank's own does not exist; without "
        "bi_lora and flat_lora, which compute with whole layers",
    ),
    EngineRow(
        "HSDP (DistributedConfig(fsdp_size=n, dp_replicate_size=m))",
        "all",
        "as FSDP2, in m groups of n ranks",
    ),
    EngineRow(
        "DeepSpeed with ZeRO-1 or ZeRO-2 (accelerate_configs/zero1.yaml, zero2.yaml)",
        "all",
        "ascent and descent gradients stay whole on each rank until DeepSpeed gets the update; "
        "without bi_lora and flat_lora",
    ),
    EngineRow(
        "DeepSpeed with ZeRO-3 (accelerate_configs/zero3.yaml), for head_sam",
        "head_sam, none",
        "one pass, which DeepSpeed runs as its own; the loss is what the method transforms",
    ),
    EngineRow(
        "DeepSpeed with ZeRO-3, for all other methods",
        "refused",
        "its weights exist inside a forward only and its gradients are not handed out, so that "
        "nothing can perturb or scale the former or keep the latter; use sam='head_sam', ZeRO-2 or "
        "FSDP2",
        lambda t: is_zero3(t) and not t._method.one_gradient,
    ),
    EngineRow(
        "DeepSpeed without ZeRO (stage 0)",
        "refused",
        "its clipping is another than Trainer's; use ZeRO-1, or DDP",
        _deepspeed(lambda plugin: int(plugin.zero_stage) == 0),
    ),
    EngineRow(
        "DeepSpeed's own autocast (torch_autocast in its configuration)",
        "refused",
        "its engine casts around a forward, which SAM's passes do without; use bf16=True",
        _deepspeed(lambda p: p.deepspeed_config.get("torch_autocast", {}).get("enabled", False)),
    ),
    EngineRow(
        "DeepSpeed with reentrant activation checkpointing",
        "refused",
        "it cannot compute a gradient that DeepSpeed does not see; use "
        "activation_checkpointing_kwargs={'use_reentrant': False} (gradient_checkpointing_kwargs "
        "in older transformers)",
        lambda t: _deepspeed(lambda plugin: True)(t) and reentrant(t),
    ),
    EngineRow(
        "tensor, expert or pipeline parallelism",
        "refused",
        "each rank holds a part of the weights; use DDP, with LoRA if the model is too large",
        _any(
            lambda t: t.get_tp_size() > 1,
            _loaded("tp", "ep", "pp"),
            _parallelism("tp"),
        ),
    ),
    EngineRow(
        "context or sequence parallelism",
        "refused",
        "each rank holds a part of every example; use DDP",
        _parallelism("cp", "sp"),
    ),
    EngineRow(
        "FSDP1 (accelerate's plugin with fsdp_version 1)",
        "refused",
        "it flattens the weights of a module into one; use FSDP2 (fsdp_version: 2)",
        lambda t: _plugin_version(t) == 1,
    ),
    EngineRow(
        "DDP with a static graph (ddp_static_graph=True)",
        "refused",
        "torch then cannot start with a pass that is not averaged over ranks; leave it out",
        _static_graph,
    ),
    EngineRow(
        "DataParallel (several GPUs in one process)",
        "refused",
        f"its replicas are made anew in every pass; {PER_GPU}",
        lambda t: _mode(ParallelMode.NOT_DISTRIBUTED)(t) and t.args.n_gpu > 1,
    ),
    EngineRow(
        "fp8 mixed precision",
        "refused",
        "its scaling statistics move in every pass; use bf16=True",
        lambda t: t.accelerator.mixed_precision == "fp8",
    ),
    EngineRow(
        "Megatron-LM", "refused", "its backward is its own; use DDP", _distributed("MEGATRON_LM")
    ),
    EngineRow(
        "SageMaker parallelism",
        "refused",
        "its backward is its own; use DDP (torchrun)",
        _mode(ParallelMode.SAGEMAKER_MODEL_PARALLEL, ParallelMode.SAGEMAKER_DATA_PARALLEL),
    ),
    EngineRow(
        "XLA (TPU)",
        "refused",
        "not proven there; use CPU or GPU",
        _any(_distributed("XLA"), _mode(ParallelMode.TPU)),
    ),
    EngineRow(
        "FSDP that accelerate does not apply (its plugin needs a GPU)",
        "refused",
        "the weights would not be sharded; use DistributedConfig(fsdp_size=n) at from_pretrained",
        lambda t: (bool(t.args.fsdp) or _parallelism("dp_shard")(t)) and not is_fsdp2(t),
    ),
)
