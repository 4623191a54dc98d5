# SPDX-License-Identifier: Apache-2.0
"""Other people's trainers under SAM: TRL's for fine-tuning and preferences, sentence-transformers'.

Each by the line over `SAMMixin` that is shown, on a tiny model, against the same without SAM.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import BertModel, set_seed

from hf_sam.landscape.data import take
from tests.toys import assert_equal, bert, llama, logged, tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",  # the names of their configs
)
NEEDS_TRL = "needs TRL: pip install 'hf-sam[trl]'"
NEEDS_SENTENCES = "needs sentence-transformers: pip install 'hf-sam[sentence-transformers]'"


@dataclass(frozen=True)
class Host:
    """A foreign trainer, and how to build one.

    Attributes:
        cls: the trainer's class.
        config: its arguments' class.
        settings: its arguments, beside those that all have.
        parts: makes what else it takes, in a folder, for a dropout.
        take: returns the chosen examples of a batch.
    """

    cls: type
    config: type
    settings: dict[str, Any]
    parts: Callable[[Path, float], dict[str, Any]]
    take: Callable[[dict[str, Any], Any], dict[str, Any]]


def sentence(draw: Random, low: int = 4, high: int = 9) -> str:
    return " ".join(f"w{draw.randrange(47)}" for _ in range(draw.randrange(low, high)))


def sft() -> Host:
    trl = pytest.importorskip("trl", reason=NEEDS_TRL)

    def parts(folder: Path, dropout: float) -> dict[str, Any]:
        draw = Random(1)
        rows = [[draw.randrange(3, 50) for _ in range(draw.randrange(4, 9))] for _ in range(32)]
        labels = [[-100, *row[1:]] for row in rows]
        data = Dataset.from_dict({"input_ids": rows, "labels": labels})
        return {"model": llama(dropout), "train_dataset": data, "processing_class": tokenizer()}

    settings: dict[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    settings |= {"bf16": False}  # activations are checkpointed by default
    return Host(trl.SFTTrainer, trl.SFTConfig, settings, parts, take)


def dpo() -> Host:
    trl = pytest.importorskip("trl", reason=NEEDS_TRL)

    def parts(folder: Path, dropout: float) -> dict[str, Any]:
        draw = Random(2)
        names = ("prompt", "chosen", "rejected")
        pairs = [{name: sentence(draw, 2, 5) for name in names} for _ in range(32)]
        model = llama(dropout)
        reference = llama()
        data = Dataset.from_list(pairs)
        given = {"model": model, "ref_model": reference, "train_dataset": data}
        return {**given, "processing_class": tokenizer()}

    def pairs_of(inputs: dict[str, Any], index: Any) -> dict[str, Any]:
        """The chosen rows are followed by the rejected ones."""
        halves = {key: value.chunk(2) for key, value in inputs.items()}
        return {key: torch.cat([half[index] for half in both]) for key, both in halves.items()}

    settings = {"bf16": False, "gradient_checkpointing": False, "disable_dropout": False}
    return Host(trl.DPOTrainer, trl.DPOConfig, settings, parts, pairs_of)


def sentences(own_weights: bool = True) -> Host:
    kit = pytest.importorskip("sentence_transformers", reason=NEEDS_SENTENCES)
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, SoftmaxLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    def parts(folder: Path, dropout: float) -> dict[str, Any]:
        set_seed(0)
        BertModel(bert(dropout).config).save_pretrained(folder / "bert")
        tokenizer().save_pretrained(folder / "bert")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the first process alone has written
        inner = Transformer(str(folder / "bert"))
        model = kit.SentenceTransformer(modules=[inner, Pooling(16)], device="cpu")
        draw = Random(3)
        rows = [
            {"one": sentence(draw), "two": sentence(draw), "label": draw.randrange(2)}
            for _ in range(32)
        ]
        loss = SoftmaxLoss(model, 16, 2) if own_weights else CosineSimilarityLoss(model)
        return {"model": model, "train_dataset": Dataset.from_list(rows), "loss": loss}

    config = kit.SentenceTransformerTrainingArguments
    return Host(kit.SentenceTransformerTrainer, config, {}, parts, take)


HOSTS = {"sft": sft, "dpo": dpo, "sentences": sentences}
ON_RANKS = {"sft": sft, "dpo": dpo, "similar sentences": partial(sentences, own_weights=False)}


@cache
def shown() -> dict[str, Any]:
    """What the lines about these trainers in README and on their page define."""
    pytest.importorskip("trl", reason=NEEDS_TRL)
    pytest.importorskip("sentence_transformers", reason=NEEDS_SENTENCES)
    pages = [Path(__file__).parents[1] / name for name in ("README.md", "docs/language-models.md")]
    names: dict[str, Any] = {"__name__": __name__}
    for page in pages:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        classes = [block for block in blocks if "(SAMMixin, " in block]
        assert classes, page
        for block in classes:
            exec(block, names)
    return names


def as_shown(behind: type) -> type:
    """The class that is shown over a trainer's or its arguments' class."""
    classes = (v for v in shown().values() if isinstance(v, type) and v is not behind)
    return next(cls for cls in classes if issubclass(cls, behind))


def run(
    name: str, folder: Path, plain: bool = False, dropout: float = 0.0, **arguments: Any
) -> Any:
    """A trained foreign trainer, with the mixin or without."""
    host = (HOSTS | ON_RANKS)[name]()
    cls, config = (host.cls, host.config) if plain else (as_shown(host.cls), as_shown(host.config))
    if arguments.pop("taking", False):
        cls = type("Taking", (cls,), {"take": staticmethod(host.take)})
    common = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    given = config(str(folder), **{**common, **host.settings, **arguments})
    trainer = cls(args=given, **host.parts(folder, dropout))
    trainer.before = all_weights(trainer)
    trainer.train()
    return trainer


STILL = {"learning_rate": 0.0, "gradient_accumulation_steps": 2, "dropout": 0.1}
MOVING = {"optim": "sgd", "learning_rate": 0.1, "sam_rho": 0.05}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"plain": True, **STILL},
    "still": {"sam_rho": 0.5, **STILL},
    "moving": {"sam_ascent_sync": "global", "per_device_train_batch_size": 4, **MOVING},
}
"""What two processes train, too (`tests/distributed/test_foreign.py`)."""


def all_weights(trainer: Any) -> list[torch.Tensor]:
    """Copies of the model's weights and of those that the loss owns."""
    found = {id(p): p.detach().clone() for p in trainer.model.parameters()}
    if isinstance(getattr(trainer, "loss", None), torch.nn.Module):
        found |= {id(p): p.detach().clone() for p in trainer.loss.parameters()}
    return list(found.values())


def logs(trainer: Any, but: tuple[str, ...] = ()) -> list[dict[str, float]]:
    """What was logged while training, without SAM's own readings."""
    found = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert found
    left_out = ("sam/", *but)
    return [{k: v for k, v in entry.items() if not k.startswith(left_out)} for entry in found]


every_host = pytest.mark.parametrize("name", HOSTS)


@every_host
def test_rho_zero_is_the_plain_trainer(name: str, tmp_path: Path) -> None:
    """Weights, those of a loss module too, and all that the trainer logs about its work."""
    size = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    plain = run(name, tmp_path, plain=True, dropout=0.1, **size)
    ours = run(name, tmp_path, dropout=0.1, sam_rho=0.0, **size)
    assert_equal(all_weights(ours), all_weights(plain))
    for one, other in zip(logs(ours), logs(plain), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@every_host
def test_the_trainers_records_are_of_the_clean_pass(name: str, tmp_path: Path) -> None:
    """While the weights do not move, a large radius changes none of them and no value of the log.

    Sparse SAM draws single training examples, too, through the trainer's collator and loss.
    """
    but = ("grad_norm",)
    plain = logs(run(name, tmp_path, plain=True, **STILL), but)
    drawing = {"sam": "ssam_f", "sam_options": {"fisher_samples": 3}}
    for method in ({}, drawing):
        ours = run(name, tmp_path, sam_rho=0.5, **method, **STILL)
        assert all(0.1 < length < 0.51 for length in logged(ours, "sam/perturbation_norm"))
        assert all(abs(value) > 1e-3 for value in logged(ours, "sam/sharpness"))
        assert_equal(all_weights(ours), ours.before)
        for one, other in zip(logs(ours, but), plain, strict=True):
            assert one == pytest.approx(other, rel=1e-6)


@every_host
def test_accumulation_is_invisible(name: str, tmp_path: Path) -> None:
    """Also where the micro-batches have different numbers of tokens."""
    joint = run(name, tmp_path, **MOVING)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_equal(all_weights(run(name, tmp_path, **MOVING, **cut)), all_weights(joint), 1e-6)


CUTTING = {
    "sft": {"sam": "esam"},
    "dpo": {"sam": "msam"},
    "sentences": {"sam_options": "ascent_fraction=0.5"},
}


@every_host
def test_examples_are_cut_only_by_those_who_know_how(name: str, tmp_path: Path) -> None:
    """Two groups of one batch are then the two batches that it consists of."""
    with pytest.raises(NotImplementedError, match=r"compute_loss .*take\(inputs, index\)"):
        run(name, tmp_path, **CUTTING[name])
    groups = {"sam": "msam", "sam_options": "micro_batches=2", "taking": True}
    batches = {"sam_accumulation": "micro", "gradient_accumulation_steps": 2}
    batches["per_device_train_batch_size"] = 4
    grouped = all_weights(run(name, tmp_path, **MOVING, **groups))
    assert_equal(grouped, all_weights(run(name, tmp_path, **MOVING, **batches)), 1e-6)
