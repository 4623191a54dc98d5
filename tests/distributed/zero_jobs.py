# SPDX-License-Identifier: Apache-2.0
"""What two processes do under DeepSpeed: each trains on its own half of every batch."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import TrainerCallback

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.cases import CASES
from tests.distributed.fsdp_jobs import (
    CHECKPOINTED,
    FACTORS,
    SHORT,
    odd,
    outcome,
    short,
    with_adapter,
)
from tests.distributed.jobs import Found, refusal
from tests.toys import CHECKPOINTING, examples

BATCH = 4
DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "seed": 3,
    "max_grad_norm": 0.2,
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


def make(
    folder: Path,
    deepspeed: dict[str, Any] | None,
    built: Any = None,
    kind: type[SAMTrainer] = SAMTrainer,
    **arguments: Any,
) -> Any:
    """Return a trainer on this rank's half of the batches, or without DeepSpeed on whole ones."""
    own: dict[str, Any] = {"per_device_train_batch_size": 2 * BATCH}
    if deepspeed is not None:
        own = {"per_device_train_batch_size": BATCH, "deepspeed": copy.deepcopy(deepspeed)}
        _compile_nothing()
    args = SAMTrainingArguments(str(folder), **DEFAULTS | own | arguments)
    network, data = odd() if built is None else built, examples("bert", 96)
    return kind(model=network, args=args, train_dataset=data)


def train(folder: Path, *given: Any, **arguments: Any) -> Found:
    """Train as `make` says, and return what is left."""
    trainer = make(folder, *given, **arguments)
    trainer.train()
    return outcome(trainer)


# -- jobs -----------------------------------------------------------------------------------------


def zero_methods(folder: Path) -> Found:
    """The plain Trainer and every method under ZeRO-2."""
    found = {"none": train(folder, config(2), **SHORT, sam="none")}
    keys = [c.key for c in CASES if not c.adapters]
    return found | {key: train(folder, config(2), **short(key)) for key in keys}


FEATURES: dict[str, dict[str, Any]] = {
    "zero 1": {},
    "lora": {},
    "checkpointed": CHECKPOINTED,
    "schedule": {
        "sam_when": "adaptive",
        "sam_rho": "budget:0.02:1",
        "sam_where": ["no_embeddings"],
    },
    "decoupled": {"sam": "wsam", "sam_options": {"decoupled": True}},
}
"""Runs that are also one process's on the joined batch."""


def network(name: str) -> nn.Module:
    """Return the toy of a run of `FEATURES`."""
    if name not in ("lora", *FACTORS):
        return odd()
    return with_adapter()


def zero_features(folder: Path) -> Found:
    """Stages, adapters, precision, and a perturbation of each rank's own."""
    found = {
        name: train(folder, config(int(name[-1]) if "zero" in name else 2), network(name), **more)
        for name, more in FEATURES.items()
    }
    found |= {key: train(folder, config(2), network(key), sam=key) for key in FACTORS}
    alone = {"gradient_accumulation_steps": 1, "sam_ascent_sync": "auto"}
    found["local"] = train(folder, config(2), **alone)
    for stage, kind in ((1, "bf16"), (2, "fp16")):
        own = config(stage, **{kind: {"enabled": True, **SCALE.get(kind, {})}})
        for name, more in {"none": {"sam": "none"}, "zero": {"sam_rho": 0}, "sam": {}}.items():
            given = {kind: True, "gradient_accumulation_steps": 1} | more
            with half_precision_on_cpu():
                found[f"{kind} {name}"] = train(folder, own, **given)
    return found


SCALE = {"fp16": {"initial_scale_power": 19, "hysteresis": 1}}
"""A loss scale with which the gradients overflow at first."""


@contextmanager
def half_precision_on_cpu() -> Iterator[None]:
    """Have Trainer and DeepSpeed allow what they think that only GPUs can: torch's CPU can."""
    from deepspeed.accelerator import get_accelerator

    here = type(get_accelerator())
    with (
        mock.patch("transformers.training_args.is_torch_bf16_gpu_available", lambda: True),
        mock.patch.object(here, "is_fp16_supported", lambda self: True),
    ):
        yield


class Overflows(SAMTrainer):
    """Has an infinite loss in one pass, from 1, of the last rank."""

    at = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pass_numbers = itertools.count(1)  # a number would be put back after a later pass

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        counts = torch.is_grad_enabled()  # not a question about num_items_in_batch
        bad = counts and next(self.pass_numbers) == self.at and os.environ["RANK"] == "1"
        return loss * math.inf if bad else loss


class _Watch(TrainerCallback):
    """Notes whether an update moved the weights, and the rate after it."""

    def __init__(self) -> None:
        self.notes: list[tuple[bool, float]] = []

    def on_step_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.before = [p.detach().clone() for p in model.parameters()]

    def on_step_end(self, *args: Any, model: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        pairs = zip(self.before, model.parameters(), strict=True)
        moved = not all(torch.equal(a, b) for a, b in pairs)
        self.notes.append((moved, lr_scheduler.get_last_lr()[0]))


def zero_skips(folder: Path) -> Found:
    """An infinite gradient in the third update, of two passes each; and runs that go on."""
    found: Found = {}
    for name, at in {"never": 0, "ascent": 5, "descent": 6}.items():
        watch = _Watch()
        trainer = make(folder, config(2), kind=Overflows, gradient_accumulation_steps=1)
        trainer.at = at
        trainer.add_callback(watch)
        trainer.train()
        found[name] = outcome(trainer) | {"notes": watch.notes}
    for key in ("friendly_sam", "looksam"):
        saving = {"save_strategy": "steps", "save_steps": 3, "sam": key}
        found[key] = train(folder / key, config(1), **saving)
        again = make(folder / key, config(1), **saving)
        again.train(resume_from_checkpoint=str(folder / key / "checkpoint-3"))
        found[f"{key} resumed"] = outcome(again)
    return found


def zero_refusals(folder: Path) -> Found:
    """What is refused when the trainer is built or begins."""
    explicit = {**CHECKPOINTED, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    cast = config(2, torch_autocast={"enabled": True, "dtype": "bfloat16"})
    return {
        "zero 0": refusal(lambda: make(folder, config(0))),
        "zero 3": refusal(lambda: make(folder, config(3))),
        "reentrant": refusal(lambda: make(folder, config(2), **explicit)),
        "autocast": refusal(lambda: make(folder, cast)),
    }


ZERO3_RUNS: dict[str, dict[str, Any]] = {
    "none": {"sam": "none"},
    "head_sam": {"sam": "head_sam"},
    "one micro-batch": {"sam": "head_sam", "gradient_accumulation_steps": 1},
    "late": {"sam": "head_sam", "sam_when": "after:0.5"},
    "lora": {"sam": "head_sam"},
    "checkpointed": {"sam": "head_sam", **CHECKPOINTED},
}
"""Runs under ZeRO-3 that are also one process's on the joined batch."""


def zero3_settings(name: str) -> dict[str, Any]:
    """Return the training arguments of a run of `ZERO3_RUNS`."""
    more = ZERO3_RUNS[name]
    return {"max_steps": 4, **({} if more["sam"] == "none" else {"sam_rho": 0.5}), **more}


def zero3(folder: Path) -> Found:
    """Methods of one pass, where DeepSpeed partitions the weights; and a refusal."""
    from deepspeed.runtime.zero import GatheredParameters

    found: Found = {}
    for name in ZERO3_RUNS:
        trainer = make(folder, config(3), network(name), **zero3_settings(name))
        trainer.train()
        with GatheredParameters(list(trainer.model.parameters())):
            found[name] = outcome(trainer)
    micro = {"sam": "head_sam", "sam_accumulation": "micro"}
    found["micro"] = refusal(lambda: make(folder, config(3), **micro))
    return found


ZERO3 = {"zero3": zero3}
JOBS: dict[str, Callable[[Path], Found]] = {
    job.__name__: job for job in (zero_methods, zero_features, zero_skips, zero_refusals)
}
