# SPDX-License-Identifier: Apache-2.0
"""What two processes do under DeepSpeed: each trains on its own half of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.cases import CASES
from tests.distributed.fsdp_jobs import odd, outcome
from tests.distributed.jobs import Found, method_settings
from tests.toys import examples

BATCH = 4
DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "learning_rate": 1e-2,
    "dataloader_pin_memory": False,
    "seed": 3,
    "max_grad_norm": 0.5,
    "train_sampling_strategy": "sequential",
    "sam_ascent_sync": "global",
    "max_steps": 6,
    "gradient_accumulation_steps": 2,
}


def config(stage: int, **more: Any) -> dict[str, Any]:
    """Return DeepSpeed's settings, most of which Trainer fills in."""
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 1000,
        **more,
    }


def _compile_nothing() -> None:
    """Keep DeepSpeed from compiling its all-reduce through shared memory; gloo's does as well."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def train(
    folder: Path, deepspeed: dict[str, Any] | None, network: Any = None, **arguments: Any
) -> Found:
    """Train a toy on this rank's half of the batches, or without DeepSpeed on whole ones."""
    data, batch = examples("bert", 96), 2 * BATCH
    if deepspeed is not None:
        rank = int(os.environ["RANK"])
        data = [e for i, e in enumerate(data) if i // BATCH % 2 == rank]
        batch = BATCH
        _compile_nothing()
    own = {"use_cpu": True} if deepspeed is None else {"deepspeed": deepspeed}
    given = DEFAULTS | {"per_device_train_batch_size": batch} | own | arguments
    trainer = SAMTrainer(
        model=odd() if network is None else network,
        args=SAMTrainingArguments(str(folder), **given),
        train_dataset=data,
    )
    trainer.train()
    return outcome(trainer)


# -- jobs -----------------------------------------------------------------------------------------


def settings_of(key: str) -> dict[str, Any]:
    """Return the settings of a short run of a row of `cases.py`."""
    return {k: v for k, v in method_settings(key).items() if k != "dtype"}


def zero_methods(folder: Path) -> Found:
    """The plain Trainer and every method under ZeRO-2."""
    keys = ["none", "sam"]
    return {
        key: train(folder, config(2), **(settings_of(key) if key != "none" else {"sam": "none"}))
        for key in keys
    }


JOBS: dict[str, Callable[[Path], Found]] = {job.__name__: job for job in (zero_methods,)}
