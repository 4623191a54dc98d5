# SPDX-License-Identifier: Apache-2.0
"""PEFT: the trainable weights of the active adapter are perturbed, and nothing else."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import SAMTrainer
from tests.cases import CASES
from tests.toys import assert_equal, bert, logged, make_trainer, train, weights

peft = pytest.importorskip("peft")

TARGETS = ["query", "value"]
TASK = {"task_type": "SEQ_CLS", "target_modules": TARGETS}
ADAPTERS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=2, **TASK),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, **TASK),
    "ia3": lambda: peft.IA3Config(feedforward_modules=[], **TASK),
    "modules_to_save": lambda: peft.LoraConfig(
        r=2, modules_to_save=["classifier", "pooler"], **TASK
    ),
}


def adapted(kind: str = "lora") -> nn.Module:
    """The classifier under an adapter, equal in every call."""
    model = bert()
    torch.manual_seed(5)
    return peft.get_peft_model(model, ADAPTERS[kind]())


def split(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the trainable and of the frozen parameters, by name."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, p in model.named_parameters():
        parts[0 if p.requires_grad else 1][name] = p.detach().clone()
    return parts


STOOD: WeakKeyDictionary[Any, list[dict[str, Tensor]]] = WeakKeyDictionary()


class Watching(SAMTrainer):
    """Keeps the parameters that stood in the model in every forward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        STOOD[self] = []
        self.model.register_forward_pre_hook(self._look)

    @property
    def stood(self) -> list[dict[str, Tensor]]:
        """The parameters in every pass; a list among the attributes would be of the clean one."""
        return STOOD[self]

    def _look(self, module: nn.Module, *args: Any) -> None:
        self.stood.append({n: p.detach().clone() for n, p in self.model.named_parameters()})


def moved_between(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_only_the_adapter_is_perturbed_and_trained(tmp_path: Path, kind: str) -> None:
    """In no pass and at no time does a bit of the base change."""
    model = adapted(kind)
    trainable, frozen = split(model)
    trainer = make_trainer(tmp_path, built=model, cls=Watching, sam_rho=0.5, max_steps=4)
    trainer.train()
    assert len(trainer.stood) == 8
    for stood in trainer.stood:
        assert not moved_between(frozen, stood)
    for here, there in zip(trainer.stood[0::2], trainer.stood[1::2], strict=True):
        moved = moved_between(here, there)
        assert moved and moved <= trainable.keys()
        size = sum(float((there[n] - here[n]).square().sum()) for n in moved) ** 0.5
        assert size == pytest.approx(0.5, rel=1e-3)
    now, still = split(model)
    assert not moved_between(frozen, still)
    assert moved_between(trainable, now) == trainable.keys()


def test_the_first_perturbation_lies_in_b(tmp_path: Path) -> None:
    """LoRA's B is zero at first, so A has a zero gradient; from the second update on both move."""
    trainer = make_trainer(tmp_path, built=adapted(), cls=Watching, max_steps=3)
    trainer.train()
    first = moved_between(*trainer.stood[0:2])
    second = moved_between(*trainer.stood[2:4])
    assert not any("lora_A" in name for name in first)
    assert any("lora_B" in name for name in first)
    assert any("lora_A" in name for name in second)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_rho_zero_is_the_plain_trainer(tmp_path: Path, kind: str) -> None:
    sam = train(tmp_path, built=adapted(kind), sam_rho=0, max_steps=5)
    plain = train(tmp_path, built=adapted(kind), cls=Trainer, max_steps=5)
    assert_equal(weights(sam), weights(plain))
    assert logged(sam) == logged(plain)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_trains_an_adapter(tmp_path: Path, case: Any) -> None:
    """State has the size of the adapter, not of the model."""
    model = adapted("modules_to_save")
    _, frozen = split(model)
    options = case.options or None
    trainer = train(tmp_path, built=model, sam=case.key, sam_options=options, max_steps=3)
    assert not moved_between(frozen, split(model)[1])
    largest = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for value in trainer._method.state_dict().values():
        if not isinstance(value, (int, float, Tensor)):
            assert sum(t.numel() for t in value if t is not None) <= largest


def test_only_the_active_adapter_is_perturbed(tmp_path: Path) -> None:
    """Of two adapters the one that `set_adapter` chose; then the other one."""
    model = adapted()
    model.add_adapter("other", ADAPTERS["lora"]())
    for active, idle in (("default", "other"), ("other", "default")):
        model.set_adapter(active)
        trainer = make_trainer(tmp_path, built=model, cls=Watching, max_steps=2, sam_rho=0.5)
        trainer.train()
        moved = moved_between(*trainer.stood[2:4])
        assert moved and all(f".{active}." in name for name in moved if "lora" in name)
        assert not any(f".{idle}." in name for name in moved)
        ends = moved_between(trainer.stood[0], trainer.stood[-1])
        assert ends and not any(f".{idle}." in name for name in ends)


def test_two_active_adapters(tmp_path: Path) -> None:
    """Both are perturbed, by one perturbation of length rho."""
    config = peft.LoraConfig(r=2, target_modules=TARGETS)  # no head of its own, of which PEFT
    model = peft.get_peft_model(bert(), config)  # allows one at a time
    model.add_adapter("other", config)
    model.base_model.set_adapter(["default", "other"])
    trainer = make_trainer(tmp_path, built=model, cls=Watching, max_steps=1, sam_rho=0.5)
    trainer.train()
    here, there = trainer.stood
    moved = moved_between(here, there)
    assert {part for part in ("default", "other") if any(f".{part}." in n for n in moved)} == {
        "default",
        "other",
    }
    size = sum(float((there[n] - here[n]).square().sum()) for n in moved) ** 0.5
    assert size == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_merging_after_training(tmp_path: Path, kind: str) -> None:
    """The merged model computes what the adapted one does; the base is as in the beginning."""
    model = adapted(kind)
    train(tmp_path, built=model, max_steps=3, sam_rho=0.5)
    model.eval()
    tokens = {"input_ids": torch.arange(1, 11).view(1, 10)}
    with torch.no_grad():
        before = model(**tokens).logits
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(merged(**tokens).logits, before, atol=1e-5, rtol=0)
        base = model.unload()
    fresh = dict(bert().named_parameters())
    for name, p in base.named_parameters():
        if "classifier" not in name:
            assert torch.equal(p, fresh[name]), name


@pytest.mark.parametrize("key", ["sam", "looksam", "friendly_sam", "ssam_d"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path, kind: str, key: str) -> None:
    """Only the adapter is saved, and the method's state belongs to it."""
    settings = {"sam": key, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = train(tmp_path, built=adapted(kind), **settings)
    folder = tmp_path / "checkpoint-3"
    assert (folder / "adapter_model.safetensors").is_file()
    again = train(tmp_path, built=adapted(kind), resume=str(folder), **settings)
    assert again.state.global_step == 6
    assert_equal(weights(again), weights(whole))
    assert logged(again)[-3:] == logged(whole)[-3:]


def test_where_chooses_within_the_adapter(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, built=adapted(), cls=Watching, sam_where=["lora_B"], max_steps=2
    )
    trainer.train()
    moved = moved_between(*trainer.stood[2:4])
    assert moved and all("lora_B" in name for name in moved)


def test_a_frozen_model_is_refused(tmp_path: Path) -> None:
    model = adapted()
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter.*adapter"):
        make_trainer(tmp_path, built=model)


def test_an_adapter_over_a_16_bit_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT keeps the adapter in float32, so a perturbation loses nothing and nothing is said."""
    model = peft.get_peft_model(bert().to(torch.bfloat16), ADAPTERS["lora"]())
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    assert torch.float32 in kinds
    for name, p in model.named_parameters():
        if p.requires_grad and "lora" not in name:
            p.data = p.data.float()
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer = make_trainer(tmp_path, bf16=True, max_steps=3)
        data = trainer.train_dataset
        trainer = Watching(model=model, args=trainer.args, train_dataset=data, sam="sam")
        trainer.train()
    assert not [r for r in caplog.records if "rounds" in r.getMessage()]
    here, there = trainer.stood[2:4]
    moved = moved_between(here, there)
    size = sum(float((there[n] - here[n]).double().square().sum()) for n in moved) ** 0.5
    assert size == pytest.approx(0.05, rel=1e-3)
