# SPDX-License-Identifier: Apache-2.0
"""What two processes do under FSDP2: each job trains toys that are sharded by rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    set_seed,
)
from transformers.distributed.configuration_utils import DistributedConfig

from hf_sam import METHODS, SAMTrainer, SAMTrainingArguments, Vector
from hf_sam.engine.checkpoint import load_state, save_state
from hf_sam.landscape import Engine
from hf_sam.methods import asks
from tests.cases import CASES
from tests.distributed.jobs import Found, method_settings
from tests.toys import CHECKPOINTING, examples, llama


def odd() -> nn.Module:
    """A classifier whose tensors cannot be halved: of 51 rows, of three, and of a single one."""
    set_seed(0)
    config = BertConfig(
        vocab_size=51,
        num_labels=3,
        type_vocab_size=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "bert": (odd, AutoModelForSequenceClassification),
    "llama": (llama, AutoModelForCausalLM),
}
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "seed": 3,
}
SHORT: dict[str, Any] = {"max_steps": 4, "gradient_accumulation_steps": 2}
CHECKPOINTED: dict[str, Any] = {
    CHECKPOINTING: True,
    f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "layers": ("bert", {"sam": "looksam", "sam_options": {"k": 2, "layerwise": "trust"}}),
    "structured": ("bert", {"sam": "ssam_f", "sam_options": {"pattern": "structured"}}),
    "n:m": ("bert", {"sam": "ssam_f", "sam_options": {"pattern": "2:4", "fisher_samples": 3}}),
    "renewed": (
        "bert",
        {"sam": "ssam_d", "sam_options": {"update_interval": 1, "growth": "gradient"}},
    ),
    "adaptive": ("bert", {"sam_when": "adaptive", "sam_rho": "budget:0.02:1"}),
    "norm": ("bert", {"sam_where": ["norm"], "sam": "asam"}),
    "evaluated": ("bert", {"sam": "rsam", "eval_strategy": "steps", "eval_steps": 1}),
    "checkpointed": ("llama", CHECKPOINTED),
}
"""Runs that are also one process's on the joined batch."""
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "msam of tokens": ("llama", {"sam": "msam", "sam_options": {"micro_batches": 2}}),
    "micro": ("llama", {"sam": "stable_sam", "sam_accumulation": "micro"}),
    "msam": ("bert", {"sam": "msam", "sam_options": {"micro_batches": 2}}),
    "esam": ("bert", {"sam": "esam"}),
    "half": ("llama", {"sam_options": {"ascent_fraction": 0.5}, "sam": "friendly_sam"}),
}
"""Runs that are also DDP's with global ascent: each rank's examples are cut or selected."""


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of all rows."""
    found = tensor.detach()
    # One process has all rows, and `full_tensor` gives them as they are.
    return (found.full_tensor() if isinstance(found, DTensor) else found).clone()


def sharded(folder: Path, model: str, **config: Any) -> Any:
    """Return a toy in float64 that is sharded over both processes."""
    make, auto = MODELS[model]
    state = PartialState(cpu=True)
    if state.process_index == 0:
        make().double().save_pretrained(folder / model)
    state.wait_for_everyone()
    sizes = DistributedConfig(**config or {"fsdp_size": 2})
    return auto.from_pretrained(folder / model, distributed_config=sizes, dtype=torch.float64)


def train(folder: Path, model: str, network: Any = None, **arguments: Any) -> Found:
    """Train a toy, which is sharded unless it is given; return what is left, in whole tensors."""
    data = examples(model)
    trainer = SAMTrainer(
        model=sharded(folder, model) if network is None else network,
        args=SAMTrainingArguments(str(folder), **DEFAULTS | arguments),
        train_dataset=data,
        eval_dataset=data[:8],
    )
    trainer.train()
    return outcome(trainer)


def by_accelerate(folder: Path, built: Any = None, **arguments: Any) -> SAMTrainer:
    """Return a trainer whose model accelerate's plugin will shard, though there is no accelerator.

    accelerate offers its plugin to processes with an accelerator each, so these two say that they
    are such; everything after that is accelerate's and Trainer's own.
    """
    config = {"state_dict_type": "SHARDED_STATE_DICT", "auto_wrap_policy": "NO_WRAP"}
    given = {"fsdp": True, "fsdp_config": config} | DEFAULTS | arguments
    args = SAMTrainingArguments(str(folder), **given)
    assert args.distributed_state is not None
    args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    network = odd() if built is None else built
    return SAMTrainer(model=network.double(), args=args, train_dataset=examples("bert"))


def outcome(trainer: SAMTrainer) -> Found:
    """Return what a finished training left behind, in whole tensors."""
    kept = ("loss", "grad_norm")
    logs = [
        {k: float(v) for k, v in entry.items() if k in kept or k.startswith("sam/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    held = sum(
        p.to_local().numel() if isinstance(p, DTensor) else 0
        for p in trainer._run.parameters.params
    )
    weights = [whole(p) for p in trainer.model.parameters()]
    return {"weights": weights, "logs": logs, "held": held}


def short(key: str) -> dict[str, Any]:
    """Return the settings of a short run of a row of `cases.py`."""
    given = method_settings(key)
    return {k: v for k, v in given.items() if k not in ("dtype", "model")} | SHORT


FACTORS = [c.key for c in CASES if c.adapters and not asks(METHODS[c.key]()).changes]
"""Methods for adapters that change no layer, and so need no whole ones."""
ADAPTED = {"lora": "ssam_d", **{key: key for key in FACTORS}}
"""Methods that are tried on an adapter beside weights in shards."""


def adapted(network: Any) -> Any:
    """Return the language model under a LoRA adapter, which is replicated beside its weights."""
    from peft import LoraConfig, get_peft_model

    set_seed(1)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    found = get_peft_model(network, adapter)
    for name, param in found.named_parameters():
        if param.requires_grad:
            param.data = param.data.double()
        if "lora_B" in name:  # zero at first, which would hide A
            nn.init.normal_(param)
    return found


# -- jobs -----------------------------------------------------------------------------------------


def fsdp2_methods(folder: Path) -> Found:
    """Every method on a sharded model."""
    return {c.key: train(folder, "bert", **short(c.key)) for c in CASES if not c.adapters}


def fsdp2_parts(folder: Path) -> Found:
    """Parts of methods, Trainer's features, and groups, for which there is DDP to compare with."""
    found = {name: train(folder, model, **SHORT | more) for name, (model, more) in PARTS.items()}
    for name, key in ADAPTED.items():
        found[name] = train(folder, "llama", adapted(sharded(folder, "llama")), **short(key))
    replicas = sharded(folder, "bert", fsdp_size=1, dp_replicate_size=2)
    found["replicas"] = train(folder, "bert", replicas, **short("ssam_d"))
    for name, (model, more) in GROUPS.items():
        found[name] = train(folder, model, **SHORT | more)
        together = SHORT | more | {"sam_ascent_sync": "global", "seed": 3}
        network = MODELS[model][0]().double()
        found[f"{name} ddp"] = train(folder, model, network, **together)
    return found


HSDP = ("sam", "ssam_d", "looksam", "head_sam")
"""Methods whose norms, state, masks and heads are tried on four ranks."""


def hsdp(folder: Path) -> Found:
    """Shards over two ranks, and two replicas of each."""
    found = {}
    for key in HSDP:
        network = sharded(folder, "bert", fsdp_size=2, dp_replicate_size=2)
        found[key] = train(
            folder, "bert", network, **short(key) | {"per_device_train_batch_size": 2}
        )
    return found


def fsdp2_plugin(folder: Path) -> Found:
    """Accelerate's plugin; and methods with state, stopped halfway and continued."""
    found: Found = {}
    for key in ("friendly_sam", "ssam_d"):
        own = folder / key
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "sam": key}
        trainer = by_accelerate(own, **saving)
        trainer.train()
        found[key] = outcome(trainer)
        again = by_accelerate(own, **saving)
        again.train(resume_from_checkpoint=str(own / "checkpoint-2"))
        found[f"{key} resumed"] = outcome(again)
        found[f"{key} read"] = handed_over(again, own / "whole")
    for key in FACTORS:
        trainer = by_accelerate(folder, with_adapter(), sam=key, max_steps=4)
        trainer.train()
        found[key] = outcome(trainer)
    return found


def with_adapter() -> Any:
    """Return the classifier under an adapter, whose factors accelerate shards with its weights."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return get_peft_model(odd(), adapter)


def handed_over(trainer: SAMTrainer, folder: Path) -> Found:
    """Return the method's whole state, and whether reading it from one process's file cuts it."""
    method, engine, params = trainer._method, trainer._run.engine, trainer._run.parameters.params
    state = method.state_dict()

    def gathered(value: Any) -> Any:
        if not isinstance(value, Vector):
            return value
        pairs = zip(params, value, strict=True)
        return Vector(None if t is None else whole(engine.like(p, t)) for p, t in pairs)

    everything = {key: gathered(value) for key, value in state.items()}
    described, names = method.describe(), trainer._run.parameters.names
    main = trainer.is_world_process_zero()
    save_state(folder, described, everything, names, params, Engine(), main=main)
    torch.distributed.barrier()
    again = load_state(folder, described, names, params, engine)
    torch.testing.assert_close(plain(again), plain(state), atol=0, rtol=0)
    return {"names": names, "state": plain(everything)}


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state with lists instead of vectors."""
    return {k: list(v) if isinstance(v, Vector) else v for k, v in state.items()}


def fsdp2_gpu(folder: Path) -> Found:
    """The plugin on GPUs, as `accelerate_configs/fsdp2.yaml` switches it on."""
    given = DEFAULTS | {"use_cpu": False, "max_steps": 4}
    trainer = SAMTrainer(
        model=odd(),
        args=SAMTrainingArguments(str(folder), **given),
        train_dataset=examples("bert"),
    )
    trainer.train()
    found = outcome(trainer)
    return {"sam": found | {"weights": [w.cpu() for w in found["weights"]]}}


GPU_JOBS = {"fsdp2_gpu": fsdp2_gpu}
FOUR = {"hsdp": hsdp}
"""Jobs for four processes."""
JOBS: dict[str, Callable[[Path], Found]] = {
    job.__name__: job for job in (fsdp2_methods, fsdp2_parts, fsdp2_plugin)
}
