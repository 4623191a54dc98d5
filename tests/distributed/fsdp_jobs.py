# SPDX-License-Identifier: Apache-2.0
"""What two processes do under FSDP2: each job trains toys that are sharded by rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.distributed.configuration_utils import DistributedConfig

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.cases import CASES
from tests.distributed.jobs import Found, fit, method_settings
from tests.toys import MODELS, examples

AUTO = {"llama": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}
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


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of all rows."""
    found = tensor.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found.clone()


def sharded(folder: Path, model: str = "llama", **config: Any) -> Any:
    """Return a toy in float64 that is sharded over both processes."""
    state = PartialState(cpu=True)
    if state.process_index == 0:
        MODELS[model]().double().save_pretrained(folder / model)
    state.wait_for_everyone()
    sizes = DistributedConfig(**config or {"fsdp_size": 2})
    return AUTO[model].from_pretrained(
        folder / model, distributed_config=sizes, dtype=torch.float64
    )


def trainer_of(folder: Path, network: Any, model: str = "llama", **more: Any) -> SAMTrainer:
    """Return a trainer of a sharded toy."""
    arguments = {k: v for k, v in more.items() if k != "dtype"}
    args = SAMTrainingArguments(str(folder), **DEFAULTS | arguments)
    return SAMTrainer(model=network, args=args, train_dataset=examples(model))


def outcome(trainer: SAMTrainer) -> Found:
    """Return what a finished training left behind, in whole tensors."""
    kept = ("loss", "grad_norm")
    logs = [
        {k: float(v) for k, v in entry.items() if k in kept or k.startswith("sam/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {"weights": [whole(p) for p in trainer.model.parameters()], "logs": logs}


def every_method_sharded(folder: Path) -> Found:
    """Every method on a sharded model; and those that cut batches under DDP, to compare with."""
    found = {}
    for case in CASES:
        settings = method_settings(case.key)
        trainer = trainer_of(folder, sharded(folder), **settings)
        trainer.train()
        found[case.key] = outcome(trainer)
        if case.key in ("msam", "esam"):
            more = {"per_device_train_batch_size": 4, "sam_ascent_sync": "global"}
            found[f"{case.key} ddp"] = fit(folder, model="llama", **settings | more)
    return found


JOBS: dict[str, Callable[[Path], Found]] = {job.__name__: job for job in (every_method_sharded,)}
