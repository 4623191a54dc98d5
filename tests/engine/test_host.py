# SPDX-License-Identifier: Apache-2.0
"""Which Trainer classes SAM may stand in front of."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_sam import SAMArguments, SAMMixin, SAMTrainer
from hf_sam.host.checks import check_averaged, check_host
from tests.toys import assert_equal, make_trainer, train, weights


class OwnStep(Trainer):
    """Computes and differentiates a loss of its own."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = model(**inputs).loss
        self.accelerator.backward(loss)
        return loss.detach()


class OwnInputs(Trainer):
    """Makes its data in every pass."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(inputs)


class Generating(Trainer):
    """Asks the model for data, then hands them to Trainer's step."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        with torch.no_grad():
            inputs["labels"] = model(**inputs).logits.argmax(-1)
        return super().training_step(model, inputs, num_items_in_batch)


class Noisy(Trainer):
    """Changes its data at random, and counts and wraps its steps."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        flips = torch.rand(len(inputs["labels"])) < 0.5 / self.steps
        inputs["labels"] = torch.where(flips, 1 - inputs["labels"], inputs["labels"])
        return (lambda: super(Noisy, self).training_step(model, inputs, num_items_in_batch))()


def over(cls: type) -> type:
    """A class that takes what SAMTrainer takes."""
    return type(f"SAM{cls.__name__}", (SAMTrainer, cls), {})


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (OwnStep, "OwnStep.training_step does not call super.*comes from somewhere else"),
        (OwnInputs, "OwnInputs._prepare_inputs makes the data within a pass"),
    ],
)
def test_a_trainer_with_another_loss_is_refused_when_it_is_built(
    cls: type, words: str, tmp_path: Path
) -> None:
    with pytest.raises(NotImplementedError, match=f"{words}.*the collator"):
        make_trainer(tmp_path, cls=over(cls))


def test_a_step_that_runs_the_model_for_its_data_is_refused(tmp_path: Path) -> None:
    """In the first pass, before a weight has moved; and the model runs again afterwards."""
    trainer = make_trainer(tmp_path, cls=over(Generating))
    before = weights(trainer)
    with pytest.raises(NotImplementedError, match="Generating.training_step runs the model before"):
        trainer.train()
    assert_equal(weights(trainer), before)
    trainer.model(**trainer.data_collator(list(trainer.train_dataset[:2])))


def test_a_step_that_calls_on_sees_the_same_data_in_every_pass(tmp_path: Path) -> None:
    """What it draws and counts is replayed; rho = 0 then is the class without SAM."""
    settings = {"cls": over(Noisy), "max_steps": 4, "gradient_accumulation_steps": 2}
    plain = train(tmp_path, sam="none", **settings)
    ours = train(tmp_path, sam_rho=0.0, **settings)
    assert ours.steps == plain.steps == 8
    assert_equal(weights(ours), weights(plain))


class Headed(Trainer):
    """Its loss runs modules of the trainer's own, which keep statistics."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return self.losses["one"](self.head(model(**inputs).logits)).square().mean() + 1.0


def test_statistics_of_a_loss_module_move_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, cls=over(Headed), max_steps=3)
    trainer.head = torch.nn.BatchNorm1d(2)
    trainer.losses = {"one": torch.nn.BatchNorm1d(2), "some number": 3}
    trainer.train()
    assert int(trainer.head.num_batches_tracked) == 3
    assert int(trainer.losses["one"].num_batches_tracked) == 3


def test_a_decorated_step_is_looked_into() -> None:
    def wrapping(step: Any) -> Any:
        @functools.wraps(step)
        def wrapped(*args: Any) -> Any:
            return step(*args)

        return wrapped

    class Wrapped(Trainer):
        training_step = wrapping(OwnStep.training_step)

    class WrappedNoisy(Trainer):
        training_step = wrapping(Noisy.training_step)

    check_host(WrappedNoisy)
    with pytest.raises(NotImplementedError, match="Wrapped.training_step"):
        check_host(Wrapped)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("SFTTrainer", True),
        ("DPOTrainer", True),
        ("RewardTrainer", True),
        ("KTOTrainer", True),
        ("GRPOTrainer", False),
        ("RLOOTrainer", False),
    ],
)
def test_trl(name: str, right: bool) -> None:
    """Those that generate within a pass are found out; none is named in the code."""
    trl = pytest.importorskip("trl", reason="needs TRL: pip install 'hf-sam[trl]'")
    cls = getattr(trl, name)
    if right:
        check_host(cls)
        return
    with pytest.raises(NotImplementedError, match=f"{name}._prepare_inputs"):
        check_host(cls)


def test_a_mixin_behind_its_trainer_is_refused() -> None:
    """It would silently do nothing."""
    with pytest.raises(TypeError, match=r"SAMMixin must come first.*Late\(SAMMixin, ...\)"):
        type("Late", (Trainer, SAMMixin), {})
    with pytest.raises(TypeError, match="SAMArguments must come first"):
        type("LateArguments", (TrainingArguments, SAMArguments), {})


def test_weights_that_no_rank_shares_are_refused() -> None:
    """A loss module's, which are outside of what DDP averages."""
    inside = {"first.weight", "second.weight"}
    check_averaged(["first.weight", "optimizer.1"], inside, processes=1)
    check_averaged(["first.weight", "second.weight"], inside, processes=2)
    with pytest.raises(NotImplementedError, match="2 processes.*1 of 2.*part of the model"):
        check_averaged(["first.weight", "optimizer.1"], inside, processes=2)
