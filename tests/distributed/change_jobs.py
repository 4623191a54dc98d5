# SPDX-License-Identifier: Apache-2.0
"""Trainings that go on with another number of processes, or after one of two was killed.

A chain of launches trains eight updates: each one goes on where the launch before it stopped, with
another number of processes and as many examples in all.
"""

from __future__ import annotations

import copy
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_sam import SAMTrainer, Vector
from shared_scripts.checkpoints import STATE, broken, in_folder
from tests.cases import CASES, Case
from tests.distributed import zero_jobs
from tests.distributed.fsdp_jobs import by_accelerate, whole
from tests.distributed.jobs import Found
from tests.distributed.launch import run
from tests.distributed.zero_jobs import config
from tests.toys import examples, make_trainer, weights

UPDATES, EXAMPLES = 8, 8
STATEFUL = {case.key: case for case in CASES if case.stateful}
SHARDED = [case.key for case in CASES if case.stateful and not case.adapters]


def processes() -> int:
    """Return how many processes there are, also outside of a launch."""
    return int(os.environ.get("WORLD_SIZE", 1))


def settings_of(case: Case, **more: Any) -> dict[str, Any]:
    """Return a training of a method, on however many processes, saved after every other update."""
    return {
        "sam": case.key,
        "sam_options": case.options or None,
        "max_steps": UPDATES,
        "per_device_train_batch_size": EXAMPLES // processes(),
        "save_strategy": "steps",
        "save_steps": 2,
        **more,
    }


class Leg(TrainerCallback):
    """Notes the state with which a training begins, and ends it after an update."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.trainer: Any = None
        self.loaded: dict[str, Any] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the method's state in whole tensors by name, after it was loaded."""
        engine, known = self.trainer._run.engine, self.trainer._run.parameters
        for key, value in self.trainer._method.state_dict().items():
            if isinstance(value, Vector):
                pairs = zip(known.params, value, strict=True)
                rows = [_whole(engine, p, t) for p, t in pairs]
                self.loaded[key] = dict(zip(known.names, rows, strict=True))
            else:
                self.loaded[key] = copy.deepcopy(value)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop once this leg is done."""
        control.should_training_stop |= state.global_step >= self.until


def _whole(engine: Any, param: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor | None:
    """Return a copy of all rows of an entry of the state; a `()` entry is one for all rows."""
    if rows is None:
        return None
    return whole(engine.like(param, rows)) if rows.ndim else rows.clone()


@contextmanager
def listening() -> Iterator[list[str]]:
    """Yield the lines that hf_sam logs about the checkpoint meanwhile."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.extend([record.getMessage()] * ("was saved with" in record.getMessage()))

    listener, logger = Listener(), logging.getLogger("hf_sam")
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def leg(trainer: Any, until: int, resume: Path | None) -> Found:
    """Train up to an update, from a checkpoint on; return weights, and what was loaded and said."""
    callback = Leg(until)
    callback.trainer = trainer
    trainer.add_callback(callback)
    with listening() as said:
        trainer.train(resume_from_checkpoint=resume and str(resume))
    left = [whole(p) for p in trainer.model.parameters()]
    return {"weights": left, "loaded": callback.loaded, "said": said}


def ddp_leg(folder: Path, until: int) -> Found:
    """Go on where the last launch stopped, two updates earlier, with every method."""
    found = {}
    for key, case in STATEFUL.items():
        here, resume = folder / key, folder / key / f"checkpoint-{until - 2}"
        settings = settings_of(case, sam_ascent_sync="global")
        toy = {"model": case.toy("bert"), "dtype": torch.float64}
        trainer = make_trainer(here, **settings, **toy)
        found[key] = leg(trainer, until, resume if resume.is_dir() else None)
    return found


def fsdp2_leg(folder: Path, until: int) -> Found:
    """The same with weights and states in shards."""
    found = {}
    for key in SHARDED:
        here, resume = folder / key, folder / key / f"checkpoint-{until - 2}"
        trainer = by_accelerate(here, **settings_of(STATEFUL[key]))
        found[key] = leg(trainer, until, resume if resume.is_dir() else None)
    return found


ZERO: dict[str, int] = {"friendly_sam": 1, "looksam": 2, "ssam_d": 2}
"""Methods, and the stages of ZeRO that partition what the optimizer has of them."""
UNIVERSAL = {"checkpoint": {"load_universal": True}}


def zero_leg(folder: Path) -> Found:
    """Save after four updates on two processes; on others try to go on, which DeepSpeed does from
    checkpoints that its own converter has made.
    """
    found: Found = {}
    for key, stage in ZERO.items():
        settings = settings_of(STATEFUL[key], gradient_accumulation_steps=1)
        on, resume = folder / f"{key}-on-{processes()}", folder / key / "checkpoint-4"
        if not resume.is_dir():
            found[key] = leg(zero_jobs.make(folder / key, config(stage), **settings), 4, None)
            continue
        refused = zero_jobs.make(on, config(stage), **settings)
        try:
            refused.train(resume_from_checkpoint=str(resume))
        except Exception as error:  # DeepSpeed's own kind
            found[f"{key} refused"] = str(error)
        found[key] = leg(
            zero_jobs.make(on, config(stage, **UNIVERSAL), **settings), UPDATES, resume
        )
    return found


def convert(checkpoint: Path) -> None:
    """Make a checkpoint of ZeRO-1 or ZeRO-2 one for any number of processes."""
    (saved,) = checkpoint.glob("global_step*")
    module = "deepspeed.checkpoint.ds_to_universal"
    into = ["--output_folder", str(checkpoint / f"{saved.name}_universal")]
    run([module, "--input_folder", str(saved), *into, "--inject_missing_state"], 120)


# -- one of two processes is killed ---------------------------------------------------------------


class OneDies(SAMTrainer):
    """The second process is killed in a pass of the sixth update, or in a save."""

    in_save = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.second = self.accelerator.process_index == 1

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, or die at perturbed weights."""
        perturbed = self.sam_pass is not None and self.sam_pass.kind != "clean"
        if self.second and not self.in_save and perturbed and self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.second and self.in_save and self.state.global_step == 6:
            while not Path(output_dir, STATE).is_file():  # which the first process writes last
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


class OneDiesSaving(OneDies):
    """The second process is killed in the save after the sixth update."""

    in_save = True


KILLED: dict[str, tuple[str, type[SAMTrainer]]] = {
    "pass": ("friendly_sam", OneDies),
    "save": ("looksam", OneDiesSaving),
}


def disturbed(folder: Path, moment: str, cls: type[SAMTrainer] = SAMTrainer) -> SAMTrainer:
    """Return the training of `KILLED`, with dropout, accumulation and a random state of its own."""
    settings = settings_of(STATEFUL[KILLED[moment][0]], gradient_accumulation_steps=2)
    settings |= {"per_device_train_batch_size": 2, "data": examples("bert", 40), "dropout": 0.1}
    return make_trainer(folder, cls=cls, **settings)


def dies_in_pass(folder: Path) -> Found:
    """Train until the second process is killed."""
    disturbed(folder, "pass", KILLED["pass"][1]).train()
    return {}


def dies_in_save(folder: Path) -> Found:
    """Train until the second process is killed."""
    disturbed(folder, "save", KILLED["save"][1]).train()
    return {}


def goes_on(folder: Path) -> Found:
    """Go on after both, from the newest checkpoints that are whole; and train undisturbed."""
    found: Found = {}
    for moment in KILLED:
        own = folder.parent / f"dies_in_{moment}"
        faults = {path.name: broken(path) for path in in_folder(own)}
        newest = next(path for path in in_folder(own) if broken(path) is None)
        found[moment] = {"newest": newest.name, "faults": faults}
        # One after the other, because a trainer that is built seeds the generators.
        for name, where, resume in (("again", own, str(newest)), ("whole", folder / moment, None)):
            trainer = disturbed(where, moment)
            trainer.train(resume_from_checkpoint=resume)
            state = trainer._method.state_dict()
            plain = {k: list(v) if isinstance(v, Vector) else v for k, v in state.items()}
            found[moment][name] = {"weights": weights(trainer), "state": plain}
    return found


LEGS = {"ddp_leg": ddp_leg, "fsdp2_leg": fsdp2_leg}
UNTIL = {"ddp_leg": {1: 2, 2: 4, 4: 6}, "fsdp2_leg": {2: 2, 4: 4, 1: 6}}
"""Up to which update a launch of so many processes trains."""
JOBS: dict[str, Callable[[Path], Found]] = {
    "ddp_leg": lambda folder: ddp_leg(folder, UNTIL["ddp_leg"][processes()]),
    "fsdp2_leg": lambda folder: fsdp2_leg(folder, UNTIL["fsdp2_leg"][processes()]),
    "zero_leg": zero_leg,
    "dies_in_pass": dies_in_pass,
    "dies_in_save": dies_in_save,
    "goes_on": goes_on,
}
