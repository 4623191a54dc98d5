# SPDX-License-Identifier: Apache-2.0
"""Methods for low-rank adapters: which layers they find, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import METHODS
from hf_sam.host.adapters import layers_of
from tests.cases import CASES, Case
from tests.toys import MODELS, bert, make_trainer, train

peft = pytest.importorskip("peft")

TARGETS = ["query", "value"]
every_adapter_case = pytest.mark.parametrize("case", [c for c in CASES if c.adapters], ids=str)


def adapted(**config: Any) -> nn.Module:
    """The classifier under an adapter."""
    return peft.get_peft_model(
        bert(), peft.LoraConfig(**{"r": 2, "target_modules": TARGETS} | config)
    )


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def settings(case: Case, **more: Any) -> dict[str, Any]:
    return {"sam": case.key, "sam_options": case.options or None, "max_steps": 3, **more}


def test_the_layers_of_a_model() -> None:
    """Both factors of each, in the optimizer's order, with PEFT's scale."""
    model = adapted(lora_alpha=6)
    params = trained(model)[::-1]
    layers = layers_of(model, params)
    assert len(layers) == 4 and all(len(layer.pairs) == 1 for layer in layers)
    for layer in layers:
        module = model.get_submodule(layer.name)
        pair = layer.pairs[0]
        assert params[pair.a] is module.lora_A.default.weight
        assert params[pair.b] is module.lora_B.default.weight
        assert pair.scale == 3.0 and layer.base is module.base_layer


def test_several_adapters() -> None:
    """Those that are active and trained: one, the other, or both with their own scales."""
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=3, target_modules=["query"]))
    both = ["default", "other"]
    for active, expected in (("default", [1] * 4), ("other", [1] * 2), (both, [2, 1] * 2)):
        model.base_model.set_adapter(active)
        layers = layers_of(model, trained(model))
        assert [len(layer.pairs) for layer in layers] == expected
    assert [pair.scale for pair in layers[0].pairs] == [4.0, 1.0]


def test_a_pair_with_a_frozen_factor_is_left_out() -> None:
    model = adapted()
    for name, p in model.named_parameters():
        if "layer.0" in name and "lora_A" in name:
            p.requires_grad_(False)
    assert [layer.name.split(".")[5] for layer in layers_of(model, trained(model))] == ["1", "1"]


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoraLinear"),
    "embeddings": ({"target_modules": ["word_embeddings"]}, "Embedding"),
    "parameters": ({"target_modules": [], "target_parameters": ["query.weight"]}, "ParamWrapper"),
}


@every_adapter_case
@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters_are_refused(case: Case, kind: str, tmp_path: Path) -> None:
    """One line before the first update, which names the adapter, the layer and the remedy."""
    config, name = KINDS[kind]
    with pytest.raises(NotImplementedError) as caught:
        train(tmp_path, built=adapted(**config), **settings(case))
    said = str(caught.value)
    assert "adapter 'default' on base_model.model.bert" in said and f"is a {name}," in said
    assert "sam='sam'" in said and "\n" not in said


@every_adapter_case
def test_a_model_without_adapters_is_refused(case: Case, tmp_path: Path) -> None:
    kind = METHODS[case.key].__name__
    with pytest.raises(ValueError, match=f"{kind} works on linear layers with.*get_peft_model"):
        train(tmp_path, **settings(case))
    with pytest.raises(ValueError, match=f"{kind} works.* that sam_where chooses: add"):
        train(tmp_path, built=adapted(), **settings(case, sam_where=["lora_B"]))


@every_adapter_case
def test_the_base_and_what_is_saved(case: Case, tmp_path: Path) -> None:
    """No bit of the base moves, a saved adapter is the trained one alone, and merging is exact."""
    model = adapted(modules_to_save=["classifier"])
    before = frozen(model)
    more = {"dropout": 0.1, "bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    trainer = train(tmp_path / "a", built=model, **settings(case, **more, max_steps=6))
    assert frozen(model).keys() == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in frozen(model).items())
    trainer.save_model(str(tmp_path / "saved"))
    again = peft.PeftModel.from_pretrained(bert(), tmp_path / "saved")
    ours, theirs = (dict(m.named_parameters()) for m in (model, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], p) for name, p in ours.items())
    tokens = {"input_ids": torch.arange(1, 11).view(1, 10)}
    with torch.no_grad():
        logits = again.eval()(**tokens).logits
        merged = again.merge_and_unload()(**tokens).logits
    torch.testing.assert_close(merged, logits, atol=1e-5, rtol=0)


@every_adapter_case
def test_two_adapters_train_together(case: Case, tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["query"]))
    model.base_model.set_adapter(["default", "other"])
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train(tmp_path, built=model, **settings(case))
    now = dict(model.named_parameters())
    assert all(not torch.equal(now[name], p) for name, p in before.items())


def test_the_toys_have_adapters() -> None:
    for name in ("lora", "lora_llama", "lora_resnet", "lora_t5"):
        model = MODELS[name]()
        assert layers_of(model, trained(model))


class TestBAR:
    """x = B = 2 and y = A = 0.5, f = (x y - 2)^2 / 2, at a learning rate of 0.1."""

    @staticmethod
    def step(x: float, y: float, g: tuple[float, float], **options: Any) -> list[float]:
        """Return B and A after BAR and a step of gradient descent; g are given gradients."""
        from hf_sam import BAR, Landscape, Progress
        from hf_sam.landscape import Layer, Pair

        b, a = (nn.Parameter(torch.tensor([[v]], dtype=torch.float64)) for v in (x, y))

        def backward(batch: Any, share: float = 1.0) -> Tensor:
            b.grad, a.grad = (torch.tensor([[v]], dtype=torch.float64) for v in g)
            return torch.zeros(())

        def layers() -> list[Layer]:
            return [Layer("layer", nn.Linear(1, 1), [Pair(a=1, b=0)])]

        progress = Progress(0, 10, learning_rate=0.1)
        at = Landscape([b, a], [0], backward, layers=layers, progress=progress)
        update = BAR(mu=0.5, **options)(at)
        scaled = [b.item(), a.item()]
        for p, u in zip((b, a), update, strict=True):
            p.data -= 0.1 * u
        return [*scaled, b.item(), a.item()]

    @pytest.mark.parametrize("balance", ["gradients", "weights"])
    def test_by_hand(self, balance: str) -> None:
        """g = ((x y - 2) y, (x y - 2) x) = (-0.5, -2): both rules shrink x and let y grow."""
        found = self.step(2.0, 0.5, (-0.5, -2.0), balance=balance)
        assert found == pytest.approx([1.9, 0.525, 1.95, 0.725], abs=1e-12)

    def test_a_balanced_pair(self) -> None:
        """Its product changes by the factor 1 - s^2 alone."""
        x, y, *_ = self.step(1.5, 1.5, (-1.0, -1.0))
        assert x * y == pytest.approx(1.5 * 1.5 * (1 - 0.05**2), abs=1e-12)

    def test_the_two_rules_differ(self) -> None:
        """A large factor with a large gradient: nBAR lets it grow, oBAR does not."""
        assert self.step(2.0, 0.5, (2.0, 0.5))[:2] == pytest.approx([2.1, 0.475])
        assert self.step(2.0, 0.5, (2.0, 0.5), balance="weights")[:2] == pytest.approx([1.9, 0.525])

    def test_too_strong_is_refused(self, tmp_path: Path) -> None:
        more = {"learning_rate": 0.1, "sam_options": {"mu": 20.0}}
        with pytest.raises(ValueError, match="mu=20.0 times the learning rate is 2.*mu below 1 / "):
            train(tmp_path, sam="bar", model="lora", **more)

    def test_a_loop_without_a_learning_rate_is_told(self) -> None:
        from hf_sam import BAR, Progress
        from tests.toys import AdaptedBowl, Bowl

        with pytest.raises(ValueError, match=r"Progress\(learning_rate=\.\.\.\)"):
            BAR()(AdaptedBowl().landscape(progress=Progress()))
        with pytest.raises(ValueError, match="has no `layers`"):
            BAR()(Bowl().landscape(progress=Progress(learning_rate=0.1)))


def test_a_sharding_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shares out the factors, or the optimizer's copy of them."""
    from hf_sam.engine.accelerated import AcceleratedEngine

    monkeypatch.setattr(AcceleratedEngine, "replicated", False)
    trainer = make_trainer(tmp_path, model="lora", sam="bar")
    with pytest.raises(NotImplementedError, match="BAR does not work under FSDP2.*use DDP"):
        trainer.train()
