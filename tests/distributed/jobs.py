# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed test do: each job trains toys and returns plain values."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import Trainer, TrainerCallback

from hf_sam import SAMArguments, SAMTrainer
from hf_sam.arguments import build_method
from tests.cases import CASES
from tests.toys import examples, make_trainer, weights

Found = dict[str, Any]
LOGGED = ("loss", "grad_norm", "learning_rate")

BASE: dict[str, Any] = {"dtype": torch.float64, "per_device_train_batch_size": 4}
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}


CHECKPOINTED = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
EVERY_BATCH = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


NOTES: WeakKeyDictionary[Any, SimpleNamespace] = WeakKeyDictionary()
"""Per trainer; what hangs on a trainer itself is put back after every pass but the clean one."""


class Recorder(SAMTrainer):
    """Remembers what Trainer hands over, and counts backward passes and all-reduces of gradients.

    Attributes:
        notes: `seen`, every micro-batch in order; `backwards`, passes so far; `reduced`, gradient
            buckets that DDP averaged, per update.
        overflow_in: the backward pass, from 1, whose loss is made infinite on the last rank.
        views: DDP's gradient_as_bucket_view.
    """

    overflow_in: int | None = None
    views: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Of all passes: what stands in the trainer itself is kept of the clean one only.
        NOTES[self] = SimpleNamespace(seen=[], backwards=0, reduced=[])
        super().__init__(*args, **kwargs)
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = self.views
        self.add_callback(_OpenUpdate(self))
        self.original_backward = self.accelerator.backward
        self.accelerator.backward = self.counted_backward

    @property
    def notes(self) -> SimpleNamespace:
        """What was noted so far."""
        return NOTES[self]

    def counted_backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Count, and overflow where that is asked for."""
        self.notes.backwards += 1
        last = self.accelerator.process_index == self.accelerator.num_processes - 1
        overflows = self.notes.backwards == self.overflow_in and last
        self.original_backward(loss * math.inf if overflows else loss, **kwargs)

    def _prepare_for_training(self, *args: Any) -> Any:
        model, loader = super()._prepare_for_training(*args)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.register_comm_hook(self, _count_all_reduce)
        return model, loader

    def training_step(self, model: Any, inputs: Any, *rest: Any) -> Tensor:
        """Remember the micro-batch."""
        self.notes.seen.append({k: v.clone() for k, v in inputs.items()})
        return super().training_step(model, inputs, *rest)


class BucketViews(Recorder):
    """Under DDP, gradients are views of the buckets that are averaged."""

    views = True


class _OpenUpdate(TrainerCallback):
    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.notes.reduced.append(0)


def _count_all_reduce(trainer, bucket):  # DDP refuses annotations that are strings
    trainer.notes.reduced[-1] += 1
    return allreduce_hook(None, bucket)


def outcome(trainer: Trainer) -> Found:
    """Return what a finished training left behind."""
    logs = [
        {k: float(v) for k, v in entry.items() if k in LOGGED or k.startswith("sam/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    found: Found = {
        "weights": weights(trainer),
        "buffers": [b.detach().clone() for b in trainer.model.buffers()],
        "logs": logs,
        "updates": trainer.state.global_step,
    }
    if isinstance(trainer, Recorder):
        found |= {
            "seen": trainer.notes.seen,
            "backwards": trainer.notes.backwards,
            "reduced": trainer.notes.reduced,
            "local": trainer._run.engine.local_ascent,
            "views": trainer._run.engine._views,
            "state": _plain(trainer._method.state_dict()),
        }
    return found


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    kinds = (int, float, Tensor)
    return {k: v if isinstance(v, kinds) else list(v) for k, v in state.items()}


def fit(folder: Path, cls: type[Trainer] = Recorder, **settings: Any) -> Found:
    """Train a toy and return its outcome."""
    trainer = make_trainer(folder, cls=cls, **settings)
    trainer.train()
    return outcome(trainer)


# -- jobs, each of which returns outcomes by name -------------------------------------------------

GLOBAL = [
    (model, accumulation, own_count)
    for model in ("bert", "llama")
    for accumulation in (1, 3)
    for own_count in (False, True)
    if not (model == "llama" and own_count)  # by design, each rank's tokens then weigh alike
]


def global_settings(model: str, accumulation: int, own_count: bool) -> dict[str, Any]:
    """Return the settings of a comparison with one process, but for the batch size."""
    return {
        "model": model,
        "dtype": torch.float64,
        "max_steps": 20,
        "gradient_accumulation_steps": accumulation,
        "average_tokens_across_devices": not own_count,
        "sam_ascent_sync": "global",
        "weight_decay": 0.1,
    }


def joined_batch(folder: Path) -> Found:
    """Global ascent, to be compared with one process on twice the batch."""
    return {
        str(case): fit(folder, per_device_train_batch_size=4, **global_settings(*case))
        for case in GLOBAL
    }


def method_settings(key: str) -> dict[str, Any]:
    """Return the settings of a short run of a row of `cases.py`."""
    case = next(case for case in CASES if case.key == key)
    return {
        "model": case.toy("bert"),
        "dtype": torch.float64,
        "sam": key,
        "sam_options": case.options or None,
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
    }


def chooses_local(key: str) -> bool:
    """Return whether a method lets each rank ascend along its own gradient."""
    options = next(case.options for case in CASES if case.key == key)
    return build_method(SAMArguments(sam=key, sam_options=options or None)).local_ascent


def every_method(folder: Path) -> Found:
    """Every method, with global ascent, and with its own choice where that is another."""
    syncs = {case.key: ["global", *["auto"] * chooses_local(case.key)] for case in CASES}
    return {
        f"{key} {sync}": fit(
            folder, per_device_train_batch_size=4, sam_ascent_sync=sync, **method_settings(key)
        )
        for key, chosen in syncs.items()
        for sync in chosen
    }


def steeper(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Return another loss for the ascent."""
    return nn.functional.cross_entropy(2 * outputs.logits, labels)


def two_losses(folder: Path) -> Found:
    """An ascent along the gradient of another loss, of all ranks or of each."""
    settings = method_settings("sam") | {"ascent_loss_func": steeper}
    return {
        sync: fit(folder, per_device_train_batch_size=4, sam_ascent_sync=sync, **settings)
        for sync in ("global", "local")
    }


LOCAL = [("bert", "sam", 1), ("bert", "sam", 3), ("bert", "asam", 1), ("bert", "asam", 3)]
LOCAL += [("lora", "sam", 2)]


def local_ascent(folder: Path) -> Found:
    """Every rank perturbs along its own gradient."""
    return {
        str((model, key, accumulation)): fit(
            folder,
            **BASE | SGD,
            model=model,
            sam=key,
            max_steps=20,
            gradient_accumulation_steps=accumulation,
        )
        for model, key, accumulation in LOCAL
    }


RHO_ZERO: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2, "gradient_accumulation_steps": 2},
    "dropout, fixed use": {"dropout": 0.2, "ddp_find_unused_parameters": False},
    "norm": {"model": "resnet"},
    "norm, accumulated": {"model": "resnet", "gradient_accumulation_steps": 2},
    "norm, own buffers": {"model": "resnet", "ddp_broadcast_buffers": False},
    "uneven": {"data_size": 21, "max_steps": -1, "num_train_epochs": 2, "dropout": 0.2},
    "uneven, accumulated": {
        "data_size": 21,
        "max_steps": -1,
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
    },
}


def rho_zero(folder: Path) -> Found:
    """A perturbation of length zero, and the plain Trainer, bit for bit."""
    found = {}
    for name, given in RHO_ZERO.items():
        more = dict(given)
        size = more.pop("data_size", 48)
        more = {"data": examples(more.get("model", "bert"), size), "max_steps": 6} | more
        for kind, sam in {
            "plain": {"sam": "none"},
            "global": {"sam_rho": 0, "sam_ascent_sync": "global"},
            "local": {"sam_rho": 0},
        }.items():
            found[f"{name} {kind}"] = fit(folder, **BASE | {"dtype": torch.float32}, **more, **sam)
    llama = BASE | {"model": "llama", "max_steps": 6, "gradient_accumulation_steps": 2}
    found["trainer plain"] = fit(folder, cls=Trainer, **llama)
    found["trainer global"] = fit(folder, **llama, sam_rho=0, sam_ascent_sync="global")
    found["trainer local"] = fit(folder, **llama, sam_rho=0)
    return found


def buckets(folder: Path) -> Found:
    """DDP's ways to hold and send gradients, each of which must make no difference."""
    found = {}
    ways: dict[str, tuple[type[Trainer], dict[str, Any]]] = {
        "as they are": (Recorder, {}),
        "views": (BucketViews, {}),
        "fixed use": (Recorder, {"ddp_find_unused_parameters": False}),
        "every batch": (Recorder, {"accelerator_config": EVERY_BATCH}),
        "checkpointed": (Recorder, CHECKPOINTED),
    }
    for key, sync in (("sam", "global"), ("sam", "auto"), ("looksam", "auto")):
        for way, (cls, more) in ways.items():
            settings = BASE | copy.deepcopy(more) | {"sam": key, "sam_ascent_sync": sync}
            settings |= {"max_steps": 6, "gradient_accumulation_steps": 2}
            found[f"{key} {sync} {way}"] = fit(folder, cls=cls, **settings)
    return found


class Branches(nn.Module):
    """Uses one head or the other, as the batch says, and a third one never."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        shapes = {"body": (6, 5), "left": (5,), "right": (5,), "never": (3,)}
        for name, shape in shapes.items():
            value = torch.randn(*shape, generator=draw, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor, side: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error; `side` (B,) is equal within a batch."""
        head = self.left if int(side[0]) == 0 else self.right
        out = torch.tanh(x @ self.body) @ head
        return {"loss": (out - labels).square().mean()}


def branch_data(n: int = 96) -> list[dict[str, Any]]:
    """Return examples in groups of four: rank 0 turns left, then both right, then each its way."""
    draw = torch.Generator().manual_seed(6)
    sides = [0, 1, 1, 1, 0, 1, 1, 0]
    return [
        {
            "x": torch.randn(6, generator=draw, dtype=torch.float64),
            "side": sides[(i // 4) % len(sides)],
            "labels": torch.randn((), generator=draw, dtype=torch.float64),
        }
        for i in range(n)
    ]


def branches(folder: Path) -> Found:
    """A model that uses other parameters on other ranks."""
    return {
        f"{kind} {accumulation}": fit(
            folder,
            built=Branches(),
            data=branch_data(),
            **BASE | SGD | {"optim": "adamw_torch", "weight_decay": 0.1, "max_grad_norm": 0.0},
            ddp_find_unused_parameters=True,
            train_sampling_strategy="sequential",
            max_steps=12,
            gradient_accumulation_steps=accumulation,
            sam_rho=0.3,
            **more,
        )
        for kind, more in {"local": {}, "global": {"sam_ascent_sync": "global"}}.items()
        for accumulation in (1, 2)
    }


SCHEDULES = ("random:constant:0.5", "adaptive", "every:3", "after:0.5")


def schedules(folder: Path) -> Found:
    """Schedules and radii that look at the loss or the gradient: equal on all ranks."""
    found = {
        when: fit(folder, **BASE, sam_when=when, max_steps=12, sam_rho="budget:0.02:1")
        for when in SCHEDULES
    }
    found["micro"] = fit(
        folder, **BASE, sam_accumulation="micro", gradient_accumulation_steps=3, max_steps=6
    )
    return found


def resume(folder: Path) -> Found:
    """Methods with state, stopped halfway and continued."""
    found = {}
    for key in ("friendly_sam", "looksam"):
        settings = BASE | {"sam": key, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
        settings |= {"gradient_accumulation_steps": 2}
        found[f"{key} whole"] = fit(folder / key, **settings)
        again = make_trainer(folder / key, cls=Recorder, **settings)
        again.train(resume_from_checkpoint=str(folder / key / "checkpoint-4"))
        found[f"{key} resumed"] = outcome(again)
    return found


def with_scaler(trainer: Recorder, scale: float = 2.0**12) -> Recorder:
    """Give a trainer with fp16=True on CPU the GradScaler that accelerate makes for GPUs only."""
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
    return trainer


class _Watch(TrainerCallback):
    """Notes weights and scale before and after each update."""

    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer
        self.notes: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.before = weights(self.trainer)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        pairs = zip(self.before, weights(self.trainer), strict=True)
        self.notes.append({
            "moved": not all(torch.equal(a, b) for a, b in pairs),
            "scale": self.trainer.accelerator.scaler.get_scale(),
            "rate": self.trainer.lr_scheduler.get_last_lr()[0],
        })


def overflow(folder: Path) -> Found:
    """An overflow in one pass of one rank: of two per update, 5 and 6 are the third's."""
    found = {}
    for name, pass_number in {"never": None, "ascent": 5, "descent": 6}.items():
        for sync in ("local", "global"):
            settings = {"sam_ascent_sync": sync, "max_steps": 6, "optim": "adamw_torch"}
            settings |= {"per_device_train_batch_size": 4, "fp16": True}
            trainer = with_scaler(make_trainer(folder, cls=Recorder, **settings))
            trainer.overflow_in = pass_number
            watch = _Watch(trainer)
            trainer.add_callback(watch)
            trainer.train()
            found[f"{name} {sync}"] = outcome(trainer) | {"notes": watch.notes}
    return found


def messages(folder: Path) -> Found:
    """What a run with weights stored in bfloat16 says, and what may not be asked for."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    logging.getLogger("hf_sam").addHandler(listener)
    stored = fit(folder, per_device_train_batch_size=4, dtype=torch.bfloat16, max_steps=3)
    logging.getLogger("hf_sam").removeHandler(listener)
    return {
        "stored": stored,
        "said": said,
        "static graph": refusal(lambda: make_trainer(folder, ddp_static_graph=True, **BASE)),
        "no device": refusal(lambda: make_trainer(folder, use_cpu=False, **BASE)),
    }


def refusal(attempt: Callable[[], Any]) -> str:
    """Return the message with which an attempt is refused."""
    try:
        attempt()
    except (NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "not refused"


QUICK: dict[str, Any] = BASE | SGD | {"max_steps": 4, "gradient_accumulation_steps": 2}


def one_gpu(folder: Path) -> Found:
    """Two processes that share a GPU and average through gloo."""
    given = {"use_cpu": False, "ddp_backend": "gloo", "max_steps": 6, "sam_rho": 0.2}
    settings = SGD | given | {"per_device_train_batch_size": 4}
    return {
        "global": fit(folder, **settings, sam_ascent_sync="global"),
        "local": fit(folder, **settings),
        "fp16": fit(folder, **settings, fp16=True),
        "bf16": fit(folder, **settings, bf16=True),
    }


def quick(folder: Path) -> Found:
    """The short form of `joined_batch` and `local_ascent`."""
    return {
        "global": fit(folder, **QUICK, sam_ascent_sync="global"),
        "local": fit(folder, **QUICK),
    }


def rounding(folder: Path) -> Found:
    """The perturbed weights of some updates in bfloat16, stored by coins."""
    settings = {"dtype": torch.bfloat16, "sam_rounding": "stochastic", "max_steps": 3}
    trainer = make_trainer(folder, cls=Recorder, sam_ascent_sync="global", **settings)
    seen: list[list[Tensor]] = []

    def look(module: nn.Module, *_: Any) -> None:
        seen.append([p.detach().clone() for p in module.parameters()])

    trainer.model.register_forward_pre_hook(look)
    trainer.train()
    return {"seen": seen}


def foreign(folder: Path) -> Found:
    """Other people's trainers, each without SAM and with it, while the weights do not move; and
    with it while they do.
    """
    from tests import test_foreign

    found: Found = {}
    for name in test_foreign.ON_RANKS:
        for kind, settings in test_foreign.KINDS.items():
            trainer = test_foreign.run(name, folder / name, **settings)
            found[f"{name} {kind}"] = {
                "weights": test_foreign.all_weights(trainer),
                "logs": test_foreign.logs(trainer, ("grad_norm",)),
                "local": kind != "plain" and trainer._run.engine.local_ascent,
            }
    return found


JOBS: dict[str, Callable[[Path], Found]] = {
    job.__name__: job
    for job in (
        joined_batch,
        every_method,
        two_losses,
        local_ascent,
        rho_zero,
        buckets,
        branches,
        schedules,
        resume,
        overflow,
        messages,
        one_gpu,
        quick,
        rounding,
        foreign,
    )
}
