# SPDX-License-Identifier: Apache-2.0
"""Trainer's own features under SAM: each does what it does under the plain Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.optimization import Adafactor

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.toys import assert_equal, bert, examples, logged, weights

Example = dict[str, Any]


def build(
    folder: Path,
    *,
    cls: type[Trainer] = SAMTrainer,
    model: torch.nn.Module | None = None,
    arguments: dict[str, Any] | None = None,
    **objects: Any,
) -> Trainer:
    """Return a trainer of a tiny BERT; `objects` go to the trainer itself."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    kind = TrainingArguments if cls is Trainer else SAMTrainingArguments
    args = kind(str(folder), **(defaults | (arguments or {})))
    objects = {"train_dataset": examples("bert"), "eval_dataset": examples("bert", 16, 2)} | objects
    if "model_init" not in objects:
        objects["model"] = bert(dropout=0.1) if model is None else model
    return cls(args=args, **objects)


def trained(folder: Path, **settings: Any) -> Trainer:
    """Return a trainer after training; see `build`."""
    trainer = build(folder, **settings)
    trainer.train()
    return trainer


def perturbed(trainer: Trainer) -> list[float]:
    """Return the logged share of perturbed updates: SAM was really at work."""
    return logged(trainer, "sam/share_perturbed_updates")


class Scores:
    """A `compute_metrics` that returns the given scores, one at each evaluation."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        return {"score": self.scores.pop(0)}


EVERY_STEP = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "metric_for_best_model": "score",
    "load_best_model_at_end": True,
}


class Kept(TrainerCallback):
    """Keeps the weights after each update."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        self.weights.append([p.detach().clone() for p in model.parameters()])


def test_load_best_model_at_end(tmp_path: Path) -> None:
    kept = Kept()
    trainer = build(
        tmp_path,
        arguments=EVERY_STEP | {"save_total_limit": 1},
        compute_metrics=Scores(0.1, 0.9, 0.5, 0.3),
        callbacks=[kept],
    )
    trainer.train()
    assert perturbed(trainer) == [1.0] * 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_equal(weights(trainer), kept.weights[1])
    assert not torch.equal(kept.weights[1][0], kept.weights[3][0])


def test_early_stopping(tmp_path: Path) -> None:
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = build(
        tmp_path,
        arguments=EVERY_STEP | {"max_steps": 9},
        compute_metrics=Scores(0.5, 0.9, 0.8, 0.7, 0.6),
        callbacks=[stop],
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert perturbed(trainer) == [1.0] * 4
    assert trainer.state.best_metric == 0.9


def test_adafactor(tmp_path: Path) -> None:
    adafactor = {"optim": "adafactor"}
    plain = trained(tmp_path, cls=Trainer, arguments=adafactor)
    zero = trained(tmp_path, arguments=adafactor | {"sam_rho": 0.0})
    sam = trained(tmp_path, arguments=adafactor | {"sam_rho": 0.1})
    assert isinstance(getattr(sam.optimizer, "optimizer", sam.optimizer), Adafactor)
    assert_equal(weights(zero), weights(plain))
    assert not torch.equal(weights(sam)[0], weights(plain)[0])
    assert all(torch.isfinite(w).all() for w in weights(sam))


def test_reduce_lr_on_plateau(tmp_path: Path) -> None:
    plateau = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "mode": "max"},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "score",
        "greater_is_better": True,
    }
    scores = Scores(0.5, 0.6, 0.6, 0.7)
    trainer = build(tmp_path, arguments=plateau, compute_metrics=scores)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert perturbed(trainer) == [1.0] * 4


class Focal:
    """A loss of one's own that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.items: list[Any] = []

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        self.calls += 1
        self.items.append(num_items_in_batch)
        losses = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        return ((1 - torch.exp(-losses)) ** 2 * losses).sum() / count


def test_compute_loss_func(tmp_path: Path) -> None:
    losses = {name: Focal() for name in ("plain", "zero", "sam")}
    plain = trained(tmp_path, cls=Trainer, compute_loss_func=losses["plain"])
    zero = trained(tmp_path, arguments={"sam_rho": 0.0}, compute_loss_func=losses["zero"])
    sam = trained(tmp_path, arguments={"sam_rho": 0.1}, compute_loss_func=losses["sam"])
    assert losses["plain"].calls == 4
    assert losses["sam"].calls == losses["zero"].calls == 4, "what others count is put back"
    assert {int(count) for count in losses["sam"].items} == {8}
    assert_equal(weights(zero), weights(plain))
    assert logged(zero) == logged(plain)
    assert not torch.equal(weights(sam)[0], weights(plain)[0])


class Radii(TrainerCallback):
    """Notes the radius of each run."""

    def __init__(self) -> None:
        self.trainer: SAMTrainer | None = None
        self.seen: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.seen.append(self.trainer.sam_config["method"]["rho"])


@pytest.mark.parametrize("start", [None, "0.5"])
def test_hyperparameter_search_over_sam_rho(tmp_path: Path, start: str | None) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    radii = Radii()
    own = {"sam_rho": start, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = build(tmp_path, arguments=own, model_init=lambda: bert(), callbacks=[radii])
    radii.trainer = trainer

    def space(trial: Any) -> dict[str, float]:
        return {"sam_rho": trial.suggest_float("sam_rho", 0.0, 0.5)}

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = {"sampler": sampler, "pruner": optuna.pruners.NopPruner()}
    best = trainer.hyperparameter_search(
        space, n_trials=2, direction="minimize", backend="optuna", **study
    )
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    expected = [drawn.ask().suggest_float("sam_rho", 0.0, 0.5) for _ in range(2)]
    assert radii.seen == pytest.approx(expected)
    assert best.hyperparameters["sam_rho"] in expected


def test_group_by_length(tmp_path: Path) -> None:
    data = [{"input_ids": torch.arange(1, 4 + n % 12), "labels": n % 2} for n in range(320)]
    batches: dict[str, list[list[int]]] = {"plain": [], "sam": []}

    def collator(name: str) -> Any:
        def collate(rows: list[Example]) -> dict[str, Tensor]:
            batches[name].append(sorted(len(row["input_ids"]) for row in rows))
            ids = torch.nn.utils.rnn.pad_sequence([r["input_ids"] for r in rows], batch_first=True)
            labels = torch.tensor([r["labels"] for r in rows])
            return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}

        return collate

    own = {"train_sampling_strategy": "group_by_length", "max_steps": 6}
    for name, cls in {"plain": Trainer, "sam": SAMTrainer}.items():
        settings = {"train_dataset": data, "data_collator": collator(name)}
        trainer = trained(tmp_path, cls=cls, arguments=own, **settings)
    assert perturbed(trainer) == [1.0] * 6
    assert batches["sam"] == batches["plain"]
    spread = [batch[-1] - batch[0] for batch in batches["sam"][1:6]]
    assert max(spread) <= 3  # of 11; the first batch also holds the longest examples


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_input_tokens_are_counted_once(tmp_path: Path, kind: str) -> None:
    pad = {"attention_mask": torch.tensor([1] * 7 + [0] * 3)}
    data = [example | pad for example in examples("bert")]
    seen = {"include_num_input_tokens_seen": kind, "gradient_accumulation_steps": 2}
    trainer = build(tmp_path, arguments=seen, train_dataset=data)
    trainer.train()
    per_example = {"all": 10, "non_padding": 7}[kind]
    rows = 8 * (6 + 1 * 2)  # an epoch of six micro-batches, and one update of the next
    assert trainer.state.num_input_tokens_seen == rows * per_example
    assert perturbed(trainer) == [1.0] * 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_max_steps_counts_updates(tmp_path: Path, accumulation: int) -> None:
    own = {"max_steps": 7, "gradient_accumulation_steps": accumulation}
    kept = Kept()
    trainer = build(tmp_path, arguments=own, callbacks=[kept])
    trainer.train()
    assert (trainer.state.global_step, len(kept.weights)) == (7, 7)
    assert perturbed(trainer) == [1.0] * 7


def test_eval_on_start_sees_the_weights_that_were_given(tmp_path: Path) -> None:
    first = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2}
    trainer = build(tmp_path, arguments=first)
    before = trainer.evaluate()["eval_loss"]
    trainer.state.log_history.clear()
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in history] == [0, 2, 4]
    assert history[0]["eval_loss"] == before
    assert history[-1]["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_save_only_model(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    sam = trained(tmp_path / "sam", arguments=saving)
    trained(tmp_path / "plain", cls=Trainer, arguments=saving)
    files = {
        name: {path.name for path in (tmp_path / name / "checkpoint-4").iterdir()}
        for name in ("sam", "plain")
    }
    assert files["sam"] == files["plain"]
    assert "model.safetensors" in files["sam"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sam" / "checkpoint-4")
    assert_equal([p.detach() for p in loaded.parameters()], weights(sam))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator:UserWarning")
def test_loading_and_cache_settings_change_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Worker processes, pinned memory, and a cache that is emptied where it was asked for."""
    emptied: list[int] = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda: emptied.append(1))
    base = trained(tmp_path)
    assert not emptied
    loading = {"dataloader_num_workers": 2, "dataloader_pin_memory": True}
    ours = trained(tmp_path, arguments=loading | {"torch_empty_cache_steps": 2})
    assert_equal(weights(ours), weights(base))
    assert len(emptied) == 2 * 2, "two of four updates, two passes each"
