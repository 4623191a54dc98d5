# SPDX-License-Identifier: Apache-2.0
"""In a Trainer: an update ends as if only its clean pass had happened, log and inputs included."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DataCollatorForLanguageModeling, Trainer, set_seed

from hf_sam import SAMTrainer
from hf_sam.host.inputs import Inputs, Loan
from hf_sam.host.losses import counted_share
from hf_sam.host.which import evaluating
from hf_sam.host.window import draw
from tests.engine.test_state import Moving, same
from tests.toys import assert_equal, bert, make_trainer, tokenizer, train, weights


class Noted(Trainer):
    """Notes, moves, logs, and writes into its inputs, whatever it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bank, self.meter = Moving(), SimpleNamespace(seen=0)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        inputs["input_ids"].clamp_(max=40).add_(1)
        inputs["labels"][inputs["labels"].argmax()] = 0
        loss = model(**inputs).loss
        loss = loss + self.bank(loss.detach().repeat(2, 3) + 0.1).mean() * loss
        self.meter.seen += len(inputs["labels"])
        self.log({"mine": loss.item()})
        return loss


def over(cls: type) -> type:
    return type(f"SAM{cls.__name__}", (SAMTrainer, cls), {})


def mine(trainer: Any) -> list[float]:
    return [entry["mine"] for entry in trainer.state.log_history if "mine" in entry]


@pytest.mark.parametrize("steps", [1, 2])
def test_rho_zero_is_the_plain_trainer_whatever_moves(steps: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": steps}
    plain = train(tmp_path, cls=over(Noted), sam="none", **settings)
    ours = train(tmp_path, cls=over(Noted), sam="sam", sam_rho=0.0, **settings)
    assert_equal(weights(ours), weights(plain))
    assert same(dict(ours.bank.state_dict()), dict(plain.bank.state_dict()))
    assert ours.meter.seen == plain.meter.seen == 24 * steps
    assert mine(ours) == mine(plain) and len(mine(ours)) == 3 * steps


class Asking(Trainer):
    """Notes which pass it is in, and draws from a second stream as it should."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stream = iter(range(100))
        self.notes: Any = Notes()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        if self.sam_pass.kind == "clean":
            self.drawn = next(self.stream)
        self.notes(*self.sam_pass, self.drawn, model.training)
        return model(**inputs).loss


class Notes(torch.optim.Optimizer):
    """A list that nobody puts back: an optimizer looks after itself."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def __call__(self, *note: Any) -> None:
        self.all.append(note)


@pytest.mark.parametrize(
    ("sam", "settings", "kinds"),
    [
        ("none", {}, ["clean 1"]),
        ("sam", {}, ["clean 1", "descent 2"]),
        ("rsam", {}, ["clean 1", "descent 2"]),
        ("sam", {"sam_accumulation": "micro"}, ["clean 1", "descent 2", "clean 3", "descent 4"]),
    ],
)
def test_a_subclass_can_ask_which_pass_runs(
    sam: str, settings: Any, kinds: list[str], tmp_path: Path, caplog: Any
) -> None:
    steps = 2 if settings else 1
    settings = {**settings, "gradient_accumulation_steps": steps, "max_steps": 2}
    trainer = make_trainer(tmp_path, cls=over(Asking), sam=sam, **settings)
    assert trainer.sam_pass is None
    trainer.train()
    asked = [note for note in trainer.notes.all if note[1] > 0]
    first = asked[: len(asked) // 2]
    assert [f"{kind} {number}" for kind, number, *_ in first] == kinds
    assert trainer.sam_pass is None
    drawn = [row[2] for row in asked]
    assert drawn == [d for d in sorted(set(drawn)) for _ in range(drawn.count(d))]
    assert len(set(drawn)) == 2 * kinds.count("clean 1") + 2 * kinds.count("clean 3")
    if steps == 1:  # nobody asks the loss
        assert not [r for r in caplog.records if "has drawn from" in r.getMessage()]


def test_a_stream_that_every_pass_draws_from_is_named(tmp_path: Path, caplog: Any) -> None:
    class Careless(Asking):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **more: Any) -> Any:
            next(self.stream)
            return model(**inputs).loss

    train(tmp_path, cls=over(Careless), sam="sam", max_steps=3)
    found = [r.getMessage() for r in caplog.records if "has drawn from stream" in r.getMessage()]
    assert len(found) == 1


def test_fisher_draws_are_evaluated_and_every_module_returns_to_its_mode(tmp_path: Path) -> None:
    class Frozen(over(Asking)):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            if model.training:
                model.bert.embeddings.eval()
            return super().compute_loss(model, inputs, *args, **more)

    options = {"fisher_samples": 3}
    trainer = train(tmp_path, cls=Frozen, sam="ssam_f", sam_options=options, max_steps=1)
    modes = [(kind, training) for kind, _, _, training in trainer.notes.all]
    assert modes == [*[("clean", False)] * 3, ("clean", True), ("descent", True)]
    assert not any(m.training for m in trainer.model.bert.embeddings.modules())
    assert trainer.model.training and trainer.model.bert.encoder.training


def test_evaluation_of_layers_only() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Linear(1, 1)), nn.BatchNorm1d(1).eval())
    with evaluating(model, layers_only=True):
        assert [m.training for m in model.modules()] == [True, True, False, False, False]
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError
    assert [m.training for m in model.modules()] == [True, True, True, True, False]


class TrainingOnly(nn.Module):
    """Has a loss in training mode only, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert(0.5)
        self.config = self.inner.config

    def forward(self, **inputs: Any) -> Any:
        found = self.inner(**inputs)
        return {"loss": found.loss} if self.training else {"logits": found.logits}


def test_fisher_draws_of_a_model_without_a_loss_in_evaluation(tmp_path: Path) -> None:
    options = {"fisher_samples": 2}
    settings: dict[str, Any] = {"max_steps": 2, "sam_rho": 0.0, "remove_unused_columns": False}
    ours = train(tmp_path, built=TrainingOnly(), sam="ssam_f", sam_options=options, **settings)
    plain = train(tmp_path, built=TrainingOnly(), sam="none", **settings)
    assert_equal(weights(ours), weights(plain))


def test_fisher_draws_leave_the_collators_own_generator_alone(tmp_path: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"mask_token": "<mask>"})
    collate = DataCollatorForLanguageModeling(words, mlm_probability=0.3, seed=5)
    trainer = make_trainer(tmp_path, sam="ssam_f", sam_options={"fisher_samples": 2}, max_steps=1)
    trainer.train()
    trainer.data_collator, rows = collate, [{"input_ids": torch.arange(5, 15)}] * 4
    collate(rows)
    before = collate.generator.get_state()
    trainer.callback_handler.train_dataloader = SimpleNamespace(dataset=rows, collate_fn=collate)
    draw(trainer, trainer._run.engine, 4, torch.Generator())
    assert torch.equal(collate.generator.get_state(), before)


def test_data_of_whole_batches_cannot_be_drawn_from(tmp_path: Path) -> None:
    class Batches(SAMTrainer):
        def get_train_dataloader(self) -> Any:
            batch = self.data_collator([self.train_dataset[i] for i in range(4)])
            return torch.utils.data.DataLoader([batch] * 4, batch_size=None)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="batch_size=None holds whole batches.*ssam_d"):
        train(tmp_path, cls=Batches, sam="ssam_f", max_steps=1)


# -- inputs -----------------------------------------------------------------------------------


def test_a_pass_gets_inputs_of_its_own() -> None:
    x, pair = torch.ones(2), (torch.zeros(1), [torch.zeros(1)])
    inputs = {"x": x, "again": x, "pair": pair, "text": ["a"], "meta": SimpleNamespace(y=x)}
    given = Loan(inputs).inputs
    given["x"].add_(1)
    given["pair"][1][0].add_(1)
    given["text"].append("b")
    given["meta"].y.add_(1)
    assert x.tolist() == [1, 1] and pair[1][0].tolist() == [0] and inputs["text"] == ["a"]
    assert given["again"] is given["x"] is given["meta"].y


def test_large_inputs_are_copied_only_while_or_if_something_writes(caplog: Any) -> None:
    large, inputs = torch.zeros(2**19), Inputs()
    with inputs.lend({"x": large}) as given:
        assert given["x"] is not large  # in the first update, for nobody knows
    inputs.settle()
    with inputs.lend([large]) as given:
        assert given[0] is large
    assert not caplog.records
    with inputs.lend([large]) as given:
        given[0].add_(1)
    assert "has written into its inputs for the first time" in caplog.text
    for written in (Inputs(), inputs):
        with written.lend([large]) as given:
            given[0].add_(1)
        written.settle()
        with written.lend([large]) as given:
            assert given[0] is not large


# -- the question -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("honours", "drift", "answer"),
    [(True, 0, True), (False, 0, False), (True, 0.01, True), (False, 0.01, False), (True, 2, None)],
)
def test_a_state_that_nobody_can_put_back_does_not_fool_the_question(
    honours: bool, drift: float, answer: bool | None
) -> None:
    seen = iter(range(10))

    def loss_of(items: torch.Tensor) -> float:
        return (8.0 / float(items) if honours else 2.0) + drift * next(seen)

    share = counted_share(loss_of, torch.tensor(4))
    assert (None if share is None else share != 0) is answer


@pytest.mark.parametrize("replay", [True, False])
def test_the_question_replays_dropout_and_leaves_no_trace(replay: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "sam_replay_rng": replay}
    trainer = make_trainer(tmp_path, cls=over(Noted), dropout=0.5, max_steps=1, **settings)
    trainer.train()
    assert trainer._passes.honours is False or trainer._passes.honours is None
    assert trainer.bank.at == 2 and len(mine(trainer)) == 2


# -- exceptions -------------------------------------------------------------------------------


class Failing(Noted):
    """Fails once, in the second pass of the second update."""

    fail = True

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **more)
        if self.fail and self.state.global_step == 1 and self.sam_pass == ("descent", 2):
            raise RuntimeError("out of memory")
        return loss


def test_after_an_exception_the_next_training_starts_clean(tmp_path: Path) -> None:
    """State, readings and bookkeeping; and it then equals a training from where that one ended."""
    settings: dict[str, Any] = {"cls": over(Failing), "max_steps": 2, "logging_steps": 2}
    trainer = make_trainer(tmp_path, sam="sam", **settings)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert trainer.sam_pass is None and trainer.bank.at == 2  # two clean passes
    twin = make_trainer(tmp_path, sam="sam", built=copy.deepcopy(trainer.model), **settings)
    twin.bank, twin.meter = copy.deepcopy((trainer.bank, trainer.meter))
    trainer.fail = twin.fail = False
    trainer.optimizer = trainer.lr_scheduler = None
    for one in (trainer, twin):
        set_seed(1)
        one.train()
    assert_equal(weights(trainer), weights(twin))
    assert same(dict(trainer.bank.state_dict()), dict(twin.bank.state_dict()))
    shares = [e["sam/share_perturbed_updates"] for e in trainer.state.log_history if "loss" in e]
    assert shares == [1.0] and trainer._window is None


def test_readings_of_one_training_are_not_in_the_log_of_the_next(tmp_path: Path) -> None:
    """The first leaves updates that it has not logged."""
    settings: dict[str, Any] = {"max_steps": 3, "logging_steps": 2, "logging_strategy": "steps"}
    trainer = make_trainer(tmp_path, sam="sam", sam_when="before:0.67", **settings)
    trainer.train()
    trainer._run.means._updates += 100
    trainer._pending_readings = {"sam/old": 1.0}
    trainer.train()
    shares = [e["sam/share_perturbed_updates"] for e in trainer.state.log_history if "loss" in e]
    assert shares[0] == 1.0 and not [e for e in trainer.state.log_history if "sam/old" in e]
