# SPDX-License-Identifier: Apache-2.0
"""What two processes send to each other in an update, counted by torch's profiler."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback, set_seed
from transformers.distributed.configuration_utils import DistributedConfig

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.distributed import zero_jobs
from tests.distributed.fsdp_jobs import DEFAULTS
from tests.distributed.jobs import Found
from tests.toys import examples

ROWS = {
    "none": {"sam": "none"},
    "local": {"sam": "sam", "sam_ascent_sync": "auto"},
    "global": {"sam": "sam", "sam_ascent_sync": "global"},
    "looksam": {"sam": "looksam", "sam_options": {"k": 2}},
}
SMALL = 100
"""Elements below which a message is a count or a loss, and no weights."""
UPDATES = 2


class Traffic(TrainerCallback):
    """Counts what one process sends in two updates, the first one left out.

    Attributes:
        sent: elements per update, as a ring sends them.
    """

    def __init__(self) -> None:
        self.sent = 0.0
        self._profile: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self._profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profile is not None and state.global_step == 2 + UPDATES:
            self._profile.__exit__(None, None, None)
            self.sent = self._count(args.world_size) / UPDATES
            self._profile = None

    def _count(self, ranks: int) -> float:
        """Return the elements that a ring sends: (n - 1)/n of a gather, twice that of a sum."""
        found = dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter"), 0)
        for event in self._profile.events():
            sizes = [math.prod(shape) for shape in event.input_shapes if shape]
            if not sizes or max(sizes) < SMALL:
                continue
            if event.name == "gloo:all_reduce":
                found["all_reduce"] += max(sizes)
            elif event.name == "gloo:all_gather":
                found["all_gather"] += ranks * max(sizes)
            elif event.name == "c10d::_reduce_scatter_base_":
                found["reduce_scatter"] += max(sizes)
                found["all_reduce"] -= max(sizes)  # which is how gloo does it
        share = (ranks - 1) / ranks
        return share * (2 * found["all_reduce"] + found["all_gather"] + found["reduce_scatter"])


def deep() -> nn.Module:
    """A classifier most of whose weights are in its layers."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


def train(folder: Path, model: nn.Module, arguments: dict[str, Any]) -> Found:
    """Train a model, and return what a process sent in an update."""
    traffic = Traffic()
    args = SAMTrainingArguments(
        str(folder),
        **DEFAULTS | {"max_steps": 4, "per_device_train_batch_size": 4} | arguments,
    )
    trainer = SAMTrainer(
        model=model, args=args, train_dataset=examples("bert"), callbacks=[traffic]
    )
    trainer.train()
    return {"sent": traffic.sent}


def sharded(folder: Path) -> Any:
    """Return the classifier, sharded by rows, each layer by itself."""
    state = PartialState(cpu=True)
    if state.process_index == 0:
        deep().save_pretrained(folder)
    state.wait_for_everyone()
    return LlamaForSequenceClassification.from_pretrained(
        folder, distributed_config=DistributedConfig(fsdp_size=2)
    )


def ddp_traffic(folder: Path) -> Found:
    """Count under DDP."""
    return {name: train(folder / name, deep(), row) for name, row in ROWS.items()}


def fsdp2_traffic(folder: Path) -> Found:
    """Count under FSDP2, where ranks always share a perturbation."""
    rows = {name: ROWS[name] for name in ("none", "global")}
    return {name: train(folder / name, sharded(folder / "model"), r) for name, r in rows.items()}


def zero_traffic(folder: Path) -> Found:
    """Count under DeepSpeed's second stage."""
    zero_jobs._compile_nothing()
    deepspeed = {"deepspeed": zero_jobs.config(2)}
    rows = {name: ROWS[name] | deepspeed for name in ("none", "local", "global")}
    rows["local"] |= {"sam_ascent_sync": "local"}
    return {name: train(folder / name, deep(), row) for name, row in rows.items()}


JOBS = {
    "ddp_traffic": ddp_traffic,
    "fsdp2_traffic": fsdp2_traffic,
    "zero_traffic": zero_traffic,
}
