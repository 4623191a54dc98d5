# SPDX-License-Identifier: Apache-2.0
"""What each method does on a set-up: right at radius 0, training at its defaults, or refusing."""

from __future__ import annotations

import logging
import random
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_sam import METHODS, SAMArguments, SAMMixin

from .setup import SetUp

SETTINGS = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
SETTINGS |= {"disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 3}
SGD = {"optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0.0, "max_steps": 1}
SGD |= {"sam_rho": "0"}
CLOSE = 1e-4
"""Of the gradient's length, in float32."""

CUTS: dict[str, dict[str, Any]] = {
    "msam": {"sam": "msam", "sam_options": {"micro_batches": 3}},
    "micro": {"sam": "sam", "sam_accumulation": "micro", "gradient_accumulation_steps": 3},
    "esam": {"sam": "esam", "sam_options": {"gamma": 0.99}},
    "ascent_fraction": {
        "sam": "bilateral_sam",
        "sam_options": {"ascent_fraction": 0.99, "rho_min": 0.0},
    },
}
"""Ways of cutting that have the plain Trainer's gradient at radius 0."""

OPTIONS: dict[str, dict[str, Any]] = {
    "ssam_f": {"fisher_samples": 2},
    "looksam": {"k": 2},
    "late_sam": {"start": 0.4},
    "ss_sam": {"schedule": "constant", "p_start": 0.5},
}


@dataclass
class Found:
    """What a method did.

    Attributes:
        word: "plain", "said", "trained", "refused", "WRONG" or "CRASH".
        message: what was said, refused or raised.
    """

    word: str
    message: str = ""


@dataclass
class Row:
    """What all methods did on a set-up.

    Attributes:
        loss: how its parts make up the loss, as it was measured.
        zero: per way of cutting, what it did at radius 0.
        defaults: per method, what it did at its defaults.
    """

    loss: str = ""
    zero: dict[str, Found] = field(default_factory=dict)
    defaults: dict[str, Found] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """What must not be."""
        both = {**{f"{k} at radius 0": v for k, v in self.zero.items()}, **self.defaults}
        return [f"{k}: {v.message}" for k, v in both.items() if v.word in ("WRONG", "CRASH")]


class Gradient(TrainerCallback):
    """Keeps the first gradient that the optimizer gets, (P,)."""

    kept: Tensor | None = None

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if self.kept is None:
            grads = [p.grad for p in model.parameters() if p.requires_grad]
            self.kept = torch.cat([g.flatten() for g in grads if g is not None])


def make(setup: SetUp, dropout: float, gradient: Gradient, **more: Any) -> Any:
    """Return a Trainer of the set-up, in a random state of its own."""
    set_seed(0)
    random.seed(0)
    np.random.seed(0)
    size = 6 if dropout == 0 else 8
    settings = {**SETTINGS, "per_device_train_batch_size": size, **setup.settings, **more}
    settings["per_device_train_batch_size"] //= settings.get("gradient_accumulation_steps", 1)
    trainer = type("Sam", (SAMMixin, setup.trainer), {})
    arguments = type("Arguments", (SAMArguments, setup.arguments), {})
    own = {"per_example_loss_func": setup.per_example} if setup.per_example else {}
    made = trainer(
        model=setup.build(dropout),
        args=arguments(tempfile.gettempdir(), **settings),
        train_dataset=setup.data(24),
        data_collator=setup.collate,
        callbacks=[gradient],
        **setup.given,
        **own,
    )
    made.remove_callback(PrinterCallback)
    return made


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the warnings of hf_sam."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("hf_sam")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def attempt(trainer: Any) -> Found:
    """Train, or say what came of it: a refusal is an error that hf_sam raises on purpose."""
    try:
        trainer().train()
    except (ValueError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        word = "refused" if "/hf_sam/" in last.filename else "CRASH"
        return Found(word, str(error).splitlines()[0])
    except Exception as error:  # what no user should see
        return Found("CRASH", f"{type(error).__name__}: {str(error).splitlines()[:1]}")
    return Found("trained")


def at_zero(setup: SetUp, **cut: Any) -> tuple[Found, Any]:
    """Return whether a way of cutting has the plain gradient at radius 0, and its weighting."""
    plain, own, held = Gradient(), Gradient(), []
    steps = {k: v for k, v in cut.items() if k == "gradient_accumulation_steps"}
    with listening():
        first = attempt(lambda: make(setup, 0.0, plain, **{**SGD, "sam": "none", **steps}))
    if first.word != "trained" or plain.kept is None:
        return Found("CRASH", f"the plain Trainer: {first.message}"), None

    def build() -> Any:
        held.append(make(setup, 0.0, own, **SGD, **cut))
        return held[0]

    with listening() as said:
        found = attempt(build)
    weighting = held[0]._passes.weighting if held else None
    if found.word != "trained" or own.kept is None:
        return found, weighting
    off = float((own.kept - plain.kept).norm() / plain.kept.norm())
    said = [message for message in said if message.startswith("The loss of") and "par" in message]
    if off < CLOSE:
        return Found("plain"), weighting
    if said:
        return Found("said", said[0]), weighting
    return Found("WRONG", f"off by {off:.1e}"), weighting


def study(setup: SetUp) -> Row:
    """Try every method on a set-up."""
    row = Row()
    for name, cut in CUTS.items():
        row.zero[name], weighting = at_zero(setup, **cut)
        if name == "msam" and weighting is not None:
            row.loss = ("sum" if weighting.summed else "mean") + f" by {weighting.by}"
            row.loss += f", from {weighting.smallest} examples" * (weighting.smallest > 1)
            row.loss = row.zero[name].word == "said" and f"not its parts' {row.loss}" or row.loss
    for key in METHODS:
        options = OPTIONS.get(key)
        with listening():
            row.defaults[key] = attempt(
                lambda key=key, options=options: make(
                    setup, 0.1, Gradient(), sam=key, sam_options=options
                )
            )
    return row
