# SPDX-License-Identifier: Apache-2.0
"""Methods for low-rank adapters: which layers they find, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import BAR, METHODS, BiLoRA, FlatLoRA, Landscape, Progress, Vector
from hf_sam.engine.accelerated import AcceleratedEngine
from hf_sam.host.adapters import layers_of
from hf_sam.landscape import Layer, Pair, changed
from hf_sam.landscape.layers import is_changed
from hf_sam.methods.flat_lora import under
from hf_sam.vector import WHOLE
from tests.cases import CASES, Case
from tests.toys import (
    MODELS,
    AdaptedBowl,
    Bowl,
    bert,
    examples,
    logged,
    make_trainer,
    train,
)

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
    assert len(layers) == 2 and all(len(layer.pairs) == 1 for layer in layers)
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
    for active, expected in (("default", [1, 1]), ("other", [1]), (both, [2, 1])):
        model.base_model.set_adapter(active)
        layers = layers_of(model, trained(model))
        assert [len(layer.pairs) for layer in layers] == expected
    assert [pair.scale for pair in layers[0].pairs] == [4.0, 1.0]


def test_a_pair_with_a_frozen_factor_is_left_out() -> None:
    model = adapted()
    for name, p in model.named_parameters():
        if "query.lora_A" in name:
            p.requires_grad_(False)
    found = layers_of(model, trained(model))
    assert [layer.name.rpartition(".")[2] for layer in found] == ["value"]


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


@every_adapter_case
def test_evaluation_is_that_of_the_saved_adapter(case: Case, tmp_path: Path) -> None:
    """Neither a second adapter nor noise is there, once it is not zero."""
    more = {"eval_strategy": "steps", "eval_steps": 4, "max_steps": 4, "dropout": 0.1}
    data = examples("bert", 16)
    trainer = train(tmp_path, model="lora", eval_data=data, **settings(case, **more))
    assert logged(trainer, "sam/perturbation_norm")[-1] > 0
    assert not any(is_changed(layer) for layer in layers_of(trainer.model, trained(trainer.model)))
    trainer.save_model(str(tmp_path / "saved"))
    again = peft.PeftModel.from_pretrained(bert(0.1), tmp_path / "saved")
    plain = make_trainer(tmp_path, built=again, cls=Trainer, eval_data=data)
    assert logged(trainer, "eval_loss") == [plain.evaluate()["eval_loss"]]


class Scalar:
    """W0 = 0 with the adapter b a = 1 on f = (W - 2)^2 / 2, for bare Landscapes."""

    def __init__(self, b: float = 1.0, a: float = 1.0) -> None:
        self.base = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.base.weight.requires_grad_(False))
        self.b, self.a = (nn.Parameter(torch.tensor([[v]], dtype=torch.float64)) for v in (b, a))

    def backward(self, batch: Any, share: float = 1.0) -> Tensor:
        one = torch.ones(1, 1, dtype=torch.float64)
        loss = (self.base(one) + self.b @ self.a - 2).square().sum() / 2
        loss.backward()
        return loss.detach()

    def layers(self) -> list[Layer]:
        return [Layer("layer", self.base, [Pair(a=1, b=0)])]

    def at(self, step: int = 0, total: int = 10, rate: float = 0.1) -> Landscape:
        progress = Progress(step, total, learning_rate=rate)
        more: dict[str, Any] = {"layers": self.layers, "progress": progress}
        return Landscape([self.b, self.a], [0], self.backward, **more)


class TestBiLoRA:
    def test_by_hand(self) -> None:
        """G = 1 + 0.01 - 2 = -0.99: b, a go down to 1.099, and b2, a2 = 0.1 up to 0.0901."""
        toy, method = Scalar(), BiLoRA(rho=1.0, rank=1, rule="sgd")
        second = [torch.full((1, 1), 0.1, dtype=torch.float64) for _ in range(2)]
        method.state["second"] = Vector(second)
        update = method(toy.at())
        assert [float(u) for u in update if u is not None] == pytest.approx([-0.99] * 2, abs=1e-12)
        descended = [p.item() - 0.1 * float(u) for p, u in zip((toy.b, toy.a), update, strict=True)]
        assert descended == pytest.approx([1.099] * 2, abs=1e-12)
        assert [t.item() for t in second] == pytest.approx([0.0901] * 2, abs=1e-12)

    def test_one_clip_for_all_layers(self) -> None:
        """Lengths of 3 and 4 are 5 together: at rho = 0.05 every factor shrinks by 0.1."""
        draw = torch.Generator().manual_seed(0)
        shapes = [(2, 5), (4, 2)] * 2
        params = [nn.Parameter(torch.randn(s, generator=draw).double()) for s in shapes]
        with torch.no_grad():
            for i, size in ((0, 3.0), (2, 4.0)):
                params[i] *= size / (2 * params[i + 1] @ params[i]).norm()
        layers = [Layer(f"{i}", nn.Linear(5, 4), [Pair(i, i + 1, 2.0)]) for i in (0, 2)]
        second, at = Vector([p.detach().clone() for p in params]), Landscape(params, [0], None)
        assert float(BiLoRA(rho=0.05).clip(at, layers, second)) == pytest.approx(0.05)
        for t, p in zip(second, params, strict=True):
            torch.testing.assert_close(t, 0.1 * p.detach(), atol=1e-12, rtol=0)

    def test_a_new_layer_begins_anew(self, tmp_path: Path) -> None:
        """The second adapters of the others stay, and Adam's averages start over."""
        toy, method = AdaptedBowl(), BiLoRA(rank=2)
        progress = Progress(1, 8, learning_rate=0.1)
        for step in range(3):
            method(toy.landscape(step, progress=progress))
        before = [t.clone() for t in method.state["second"][:2]]
        assert method.state["count"] == 3
        method.realign([0, 1, 2, 3, None, None], WHOLE)
        assert method.state["second"][4] is None
        toy.params += [nn.Parameter(torch.ones(2, 6)), nn.Parameter(torch.zeros(4, 2))]
        more = Layer("other", nn.Linear(6, 4), [Pair(a=4, b=5)])
        where = {"layers": lambda: [*toy.layers(), more], "names": None, "progress": progress}
        second = method.second(toy.landscape(3, **where), where["layers"]())
        assert all(torch.equal(a, b) for a, b in zip(second[:2], before, strict=True))
        assert second[4].shape == (2, 6) and not second[5].any() and "count" not in method.state


class Quantised(nn.Linear):
    """A linear layer that stores whole numbers and a scale per row, as 8-bit layers do."""

    def __init__(self, dense: nn.Linear, levels: int = 127) -> None:
        super().__init__(dense.in_features, dense.out_features, bias=dense.bias is not None)
        scale = dense.weight.detach().abs().amax(1, keepdim=True) / levels
        whole = (dense.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone())
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W' + bias for the stored W."""
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)

    def dense(self) -> Tensor:
        """Return W."""
        return self.weight * self.scale


def quantised(levels: int = 127) -> nn.Module:
    """The classifier whose adapted layers are quantised."""
    model = bert()
    for block in model.bert.encoder.layer:
        for name in TARGETS:
            attention = block.attention.self
            setattr(attention, name, Quantised(getattr(attention, name), levels))
    given = {"task_type": "SEQ_CLS", "r": 2, "target_modules": TARGETS}
    torch.manual_seed(5)
    return peft.get_peft_model(model, peft.LoraConfig(**given))


class TestQuantisedBases:
    """Of 8 and of 4 bits, by a stand-in."""

    @pytest.mark.parametrize("levels", [127, 7])
    @pytest.mark.parametrize("key", ["sam", *(c.key for c in CASES if c.adapters)])
    def test_no_bit_of_the_base_moves(self, key: str, levels: int, tmp_path: Path) -> None:
        """And the adapter returns exactly: with a learning rate of zero it stays as it is."""
        for rate in (0.0, 1e-2):
            model = quantised(levels)
            before = {name: t.clone() for name, t in model.state_dict().items()}
            train(tmp_path, built=model, sam=key, max_steps=4, optim="sgd", learning_rate=rate)
            moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
            assert (len(moved) > 0) == (rate > 0)
            assert all("lora_" in name or "classifier" in name for name in moved)

    def test_noise_through_the_forward_is_noise_on_the_weight(self) -> None:
        """Norms, outputs and gradients are those of a dense layer of the same weight."""
        method, found = FlatLoRA(sigma=0.4), []
        for kind in ("dense", "quantised"):
            toy = AdaptedBowl()
            stored = Quantised(toy.base).requires_grad_(False)
            dense = nn.Linear(6, 4, bias=False, dtype=torch.float64).requires_grad_(False)
            dense.weight.copy_(stored.dense())
            toy.base = dense if kind == "dense" else stored
            at = toy.landscape(9, total=12)
            norms = method.rows(at, toy.layers()[0])
            a, b = toy.params[:2]
            whole = (dense.weight + toy.SCALE * b @ a).detach()
            torch.testing.assert_close(norms, whole.norm(dim=1), atol=1e-12, rtol=1e-12)
            found.append([*method(at)[:3], at.loss])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("key", ["sam", *(c.key for c in CASES if c.adapters)])
def test_a_base_of_bitsandbytes(key: str, bits: int, tmp_path: Path) -> None:
    """No bit of it moves, and training goes on."""
    bnb = pytest.importorskip("bitsandbytes")
    model = bert()
    for block in model.bert.encoder.layer:
        for name in TARGETS:
            old = getattr(block.attention.self, name)
            sizes = old.in_features, old.out_features
            new = (
                bnb.nn.Linear4bit(*sizes)
                if bits == 4
                else bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            )
            new.load_state_dict(old.state_dict())
            setattr(block.attention.self, name, new)
    model = model.to("cuda")
    given = {"task_type": "SEQ_CLS", "r": 2, "target_modules": TARGETS}
    model = peft.get_peft_model(model, peft.LoraConfig(**given))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = train(tmp_path, built=model, sam=key, max_steps=4, use_cpu=False)
    for name, p in model.named_parameters():
        assert name not in before or torch.equal(p, before[name]), name
    assert all(math.isfinite(loss) for loss in logged(trainer))


class TestFlatLoRA:
    def test_by_hand(self) -> None:
        """A row (3, 4) with two inputs, sigma = 0.05 at half of the run: 0.025 x 5 / sqrt(2)."""
        base = nn.Linear(2, 2000, bias=False, dtype=torch.float64).requires_grad_(False)
        base.weight.copy_(torch.tensor([3.0, 4.0]).expand(2000, 2))
        b, a = (nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in ((2000, 1), (1, 2)))
        layer, method = Layer("layer", base, [Pair(a=1, b=0)]), FlatLoRA(sigma=0.05)
        at = Landscape([b, a], [0], None, progress=Progress(5, 10))
        assert method.scale(0.5) == pytest.approx(0.025, abs=1e-15) and method.scale(0.0) == 0.0
        norms = method.rows(at, layer)
        assert norms.tolist() == pytest.approx([5.0] * 2000)
        with changed([(layer, under(at, layer, method.scale(0.5), norms))]):
            noise = base(torch.eye(2, dtype=torch.float64)).T - base.weight
        assert float(noise.std()) == pytest.approx(0.0883883476, rel=0.03)
        assert float(noise.abs().max()) < 6 * 0.0883883476

    def test_a_frozen_weight_after_a_thousand_updates(self) -> None:
        """Bit for bit, in 16 bits too."""
        for kind in (torch.float64, torch.bfloat16):
            toy, method = AdaptedBowl(kind), FlatLoRA(sigma=0.5)
            before, seen = toy.base.weight.detach().clone(), set()
            for step in range(1000):
                at = toy.landscape(0, progress=Progress(step, 1000))
                method(at)
                seen.add(float(at.loss) if at.loss is not None else None)
            assert torch.equal(toy.base.weight, before) and len(seen) > 100

    def test_noise_is_held_for_all_micro_batches_and_drawn_anew_in_the_next_update(self) -> None:
        toy, method, x = AdaptedBowl(), FlatLoRA(sigma=0.5), torch.eye(6, dtype=torch.float64)
        outputs: list[Tensor] = []
        backward = toy.backward

        def looking(batch: Any, share: Any = 1.0, **more: Any) -> Any:
            outputs.append(toy.base(x))
            return backward(batch, share, **more)

        toy.backward = looking  # type: ignore[method-assign]
        for step in (5, 6):
            method(toy.landscape(step, batches=3))
        assert len(outputs) == 6
        assert all(torch.equal(o, outputs[0]) for o in outputs[:3])
        assert all(torch.equal(o, outputs[3]) for o in outputs[3:])
        assert not torch.equal(outputs[0], outputs[3]) and torch.equal(
            toy.base(x).T, toy.base.weight
        )

    def test_the_backward_pass_sees_the_same_noise(self) -> None:
        """The gradient of the inputs is that of the product that was computed."""
        base = nn.Linear(3, 2, dtype=torch.float64).requires_grad_(False)
        b, a = (nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in ((2, 1), (1, 3)))
        layer = Layer("layer", base, [Pair(a=1, b=0)])
        at = Landscape([b, a], [0], None, progress=Progress(5, 10))
        norms = torch.ones(2, dtype=torch.float64)
        for trained in (False, True):  # a trained base has a product of its own
            base.weight.requires_grad_(trained)
            with changed([(layer, under(at, layer, 0.5, norms))]):
                x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
                assert torch.autograd.gradcheck(base, (x,))


class TestBAR:
    """x = B = 2 and y = A = 0.5, f = (x y - 2)^2 / 2, at a learning rate of 0.1."""

    @staticmethod
    def step(x: float, y: float, g: tuple[float, float], **options: Any) -> list[float]:
        """Return B and A after BAR and a step of gradient descent; g are given gradients."""
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
        with pytest.raises(ValueError, match=r"Progress\(learning_rate=\.\.\.\)"):
            BAR()(AdaptedBowl().landscape(progress=Progress()))
        with pytest.raises(ValueError, match="has no `layers`"):
            BAR()(Bowl().landscape(progress=Progress(learning_rate=0.1)))


@every_adapter_case
def test_a_sharding_engine_is_refused_where_layers_compute_something_else(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares out what they compute with; norms and scales of factors need no whole ones."""
    monkeypatch.setattr(AcceleratedEngine, "replicated", False)
    trainer = make_trainer(tmp_path, model="lora", **settings(case, max_steps=1))
    if case.key == "bar":
        trainer.train()
        return
    kind = METHODS[case.key].__name__
    with pytest.raises(NotImplementedError, match=f"{kind} does not work under FSDP2.*use DDP"):
        trainer.train()
