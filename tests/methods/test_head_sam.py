# SPDX-License-Identifier: Apache-2.0
"""SAM on the output head: against two passes of a hand-written loop, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sam import SAM, HeadSAM, Landscape, SAMTrainer
from hf_sam.estimate.allocations import Allocations
from hf_sam.host.head_search import find_head
from hf_sam.landscape.head import HeadStep
from tests.toys import CHECKPOINTING, Bowl, assert_equal, bert, llama, lora, make_trainer, resnet

RHO, LR = 0.3, 0.1
Gradients = list[Tensor | None]


def step_by_hand(
    model: nn.Module, head: nn.Module, loss_of: Callable[[], Tensor], rho: float
) -> None:
    """One update of gradient descent at the perturbed head, by two whole passes."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: Any, args: Any, z: Tensor) -> None:
        if not torch.is_grad_enabled():  # a forward that the loss only compares with
            return
        z.retain_grad()
        seen.append((args[0].detach().flatten(0, -2), z))

    def move(_: Any, args: Any, z: Tensor) -> Tensor:
        return z + args[0] @ eps.T if torch.is_grad_enabled() else z

    state = torch.get_rng_state()
    hook = head.register_forward_hook(look)
    loss_of().backward()
    hook.remove()
    gradient: Any = sum(z.grad.flatten(0, -2).T @ h for h, z in seen)  # type: ignore[union-attr]
    eps = rho * gradient / gradient.norm()
    model.zero_grad()
    torch.set_rng_state(state)
    hook = head.register_forward_hook(move)
    loss_of().backward()
    hook.remove()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= LR * p.grad
    model.zero_grad()


def lora_llama(targets: list[str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
    model = get_peft_model(llama(), adapter)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide A
            nn.init.normal_(p)
    return model


def tied() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=50, num_hidden_layers=1, tie_word_embeddings=True, **shape)
    return LlamaForCausalLM(config)


def frozen_trunk() -> nn.Module:
    model = bert()
    for name, p in model.named_parameters():
        p.requires_grad_("classifier" in name)
    return model


class Squared(SAMTrainer):
    """Computes a loss of its own from the logits, and calls nobody above it."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = (outputs.logits[:, 0] - labels).square().mean()
        return (loss, outputs) if return_outputs else loss


class WithReference(SAMTrainer):
    """Compares with the model itself in two forwards without a graph, before and after."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        with torch.no_grad():
            before = model(**inputs).logits
        outputs = model(**inputs)
        with torch.no_grad():
            after = model(**inputs).logits
        loss = outputs.loss + (outputs.logits - (before + after)).square().mean()
        return (loss, outputs) if return_outputs else loss


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return functional.cross_entropy(outputs.logits * 2, labels)


SETTINGS: dict[str, tuple[Callable[[], nn.Module], type[SAMTrainer], dict[str, Any]]] = {
    "bert": (lambda: bert(0.1), SAMTrainer, {}),
    "frozen trunk": (frozen_trunk, SAMTrainer, {}),
    "llama": (lambda: llama(0.1), SAMTrainer, {}),
    "resnet": (resnet, SAMTrainer, {}),
    "lora, head trained": (lambda: lora(0.1), SAMTrainer, {}),
    "lora, head frozen": (lambda: lora_llama(["q_proj", "v_proj"]), SAMTrainer, {}),
    "lora, head adapted": (lambda: lora_llama(["q_proj", "lm_head"]), SAMTrainer, {}),
    "tied": (tied, SAMTrainer, {}),
    "smoothed": (bert, SAMTrainer, {"label_smoothing_factor": 0.2}),
    "own function": (bert, SAMTrainer, {"compute_loss_func": own_loss}),
    "own compute_loss": (lambda: bert(0.1), Squared, {}),
    "reference forwards": (bert, WithReference, {}),
    "checkpointed": (lambda: llama(0.1), SAMTrainer, {CHECKPOINTING: True}),
}
MODEL = {"resnet": "resnet"} | dict.fromkeys(
    ("llama", "lora, head frozen", "lora, head adapted", "tied", "checkpointed"), "llama"
)
"""The toy whose examples a setting takes, where it is not bert."""


def trainer_of(name: str, folder: Path, **more: Any) -> Any:
    make, cls, settings = SETTINGS[name]
    model = MODEL.get(name, "bert")
    common = {"dtype": torch.float64, "optim": "sgd", "learning_rate": LR, "max_grad_norm": 0.0}
    common |= {"lr_scheduler_type": "constant", "sam": "head_sam", "sam_rho": RHO, "max_steps": 3}
    built = make().double()
    return make_trainer(folder, model=model, built=built, cls=cls, **common | settings | more)


class Steps:
    """Runs the hand-written loop on a model beside the trainer's, with the trainer's batches."""

    def __init__(self, name: str, trainer: Any, folder: Path) -> None:
        self.twin = trainer_of(name, folder, sam="none")
        self.twin.model.load_state_dict(trainer.model.state_dict())
        self.head = find_head(self.twin.model, None)

    def update(self, batches: list[Any]) -> None:
        twin = self.twin
        twin.model.train()

        def loss_of() -> Tensor:
            return sum(twin.compute_loss(twin.model, dict(b)) / len(batches) for b in batches)  # type: ignore[return-value]

        step_by_hand(twin.model, self.head, loss_of, RHO)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def trained_beside_the_loop(trainer: Any, loop: Steps) -> None:
    """Train, and before every update run the loop on the same batches and random numbers."""
    update = type(trainer._run).update

    def both(run: Any, window: Any) -> Tensor:
        state = torch.get_rng_state()
        loop.update([batch.inputs for batch in window.batches])
        torch.set_rng_state(state)
        return update(run, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer._run), "update", both)
        trainer.train()


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_two_passes_by_hand(name: str, tmp_path: Path) -> None:
    """To 1e-12, whatever computes the loss and whatever is trained; nothing is left behind."""
    trainer = trainer_of(name, tmp_path)
    loop, before = Steps(name, trainer, tmp_path / "twin"), values(trainer.model)
    trained_beside_the_loop(trainer, loop)
    assert_equal(values(trainer.model), values(loop.twin.model), 1e-12)
    moved = [not torch.equal(a, b) for a, b in zip(values(trainer.model), before, strict=True)]
    assert any(moved)
    assert moved == [p.requires_grad for p in trainer.model.parameters()] or name == "tied"
    modules = list(trainer.model.modules())[1:]  # accelerate gives the first a forward of its own
    assert not any({"forward", "_compiled_call_impl"} & vars(m).keys() for m in modules)


@pytest.mark.parametrize("name", ["resnet", "smoothed", "reference forwards"])
def test_micro_batches_share_one_perturbation(name: str, tmp_path: Path) -> None:
    """The one of the whole batch, found by a forward of each."""
    trainer = trainer_of(
        name, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3
    )
    loop = Steps(name, trainer, tmp_path / "twin")
    trained_beside_the_loop(trainer, loop)
    assert_equal(values(trainer.model), values(loop.twin.model), 1e-12)


def forwards(folder: Path, **more: Any) -> tuple[int, int]:
    """Return how often the trunk runs forward, and comes to run backward, in two updates."""
    counts = [0, 0]
    trainer = trainer_of("llama", folder, **{"max_steps": 2, **more})

    def count(module: Any, args: Any, output: Any) -> None:
        counts[0] += 1
        if output.requires_grad:
            output.register_hook(lambda _: counts.__setitem__(1, counts[1] + 1))

    trainer.model.model.layers[0].mlp.register_forward_hook(count)
    trainer.train()
    return counts[0], counts[1]


def test_the_trunk_runs_once(tmp_path: Path) -> None:
    """Once more forward where micro-batches share a perturbation."""
    assert forwards(tmp_path) == (2, 2)
    few = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    asked = 3  # times that Trainer's count of items is asked for what it does
    assert forwards(tmp_path, **few) == (8 + asked, 4)
    assert forwards(tmp_path, **few, sam_accumulation="micro") == (4 + asked, 4)


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("batches", [1, 3])
def test_few_rows_and_many_rows(n: int, batches: int) -> None:
    """The perturbation is made of the rows' products, or of a matrix as large as the weight."""
    bowl = Bowl()
    head = [False, True, False, False]
    found = HeadSAM(RHO)(at := bowl.landscape(n=n, batches=batches))
    wanted = SAM(RHO)(by_sam := bowl.landscape(n=n, where=head))
    for a, b in zip(found, wanted, strict=True):
        assert a is b or torch.allclose(a, b, rtol=0, atol=1e-13)
    for name in ("sharpness", "perturbation_norm", "ascent_grad_norm"):
        torch.testing.assert_close(at.readings[name], by_sam.readings[name])
    torch.testing.assert_close(at.loss, by_sam.loss)


def test_one_update_worked_out_on_paper() -> None:
    """h = 3 w1, z = (1, 2) h, L = |z|^2 / 2 and w1 = 1: G = (9, 18), eps = rho (1, 2) / sqrt 5."""
    w = [nn.Parameter(torch.ones(1, 1, dtype=torch.float64))]
    w.append(nn.Parameter(torch.tensor([[1.0], [2.0]], dtype=torch.float64)))

    def backward(batch: Tensor, share: Any = 1.0, head: Any = None) -> Tensor:
        h = batch @ w[0]
        z = head(h, h @ w[1].T, lambda z: share * z.square().sum() / 2)
        loss = share * z.square().sum() / 2
        loss.backward()
        return loss.detach()

    at = at_three(w, backward)
    first, second = HeadSAM(5**0.5)(at)
    assert at.loss == 22.5 and float(at.readings["ascent_grad_norm"]) == pytest.approx(405**0.5)
    assert float(at.readings["sharpness"]) == pytest.approx(90 - 22.5)
    assert second.flatten().tolist() == pytest.approx([18.0, 36.0])  # z there is (6, 12)
    assert first.item() == pytest.approx(3 * (6 * 2 + 12 * 4))


def at_three(params: list[nn.Parameter], backward: Any) -> Any:
    return Landscape(params, [torch.full((1, 1), 3.0, dtype=torch.float64)], backward)


def test_short_logits_do_not_round_the_perturbation_away(tmp_path: Path) -> None:
    """Logits of 16 bits go on as float32; the loss rises by rho |G|, to first order."""
    trainer = trainer_of("bert", tmp_path, bf16=True, dtype=torch.float32, sam_rho=1e-3)
    trainer.model.float()
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        rise = entry["sam/sharpness"] / (1e-3 * entry["sam/ascent_grad_norm"])
        assert rise == pytest.approx(1.0, abs=0.05)


class NoHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": functional.cross_entropy(x @ self.weight.T, labels)}


class Fused(nn.Module):
    """Makes the loss from the head's weight, without its forward."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.lm_head, self.times = nn.Linear(3, 2), times

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = functional.linear(x, self.lm_head.weight)
        for _ in range(self.times):
            z = z + self.lm_head(x)
        return {"loss": functional.cross_entropy(z, labels)}


DATA = [{"x": torch.ones(3), "labels": i % 2} for i in range(8)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (NoHead(), {}, "NoHead has no output head that is a linear layer .*linear layers: none"),
        (Fused(0), {}, "does not run in a pass: a fused cross entropy .use_liger_kernel."),
        (Fused(2), {}, "runs more than once in a pass"),
        (Fused(1), {"sam_options": {"head": "x"}}, "head='x' names no linear layer of Fused"),
        (Fused(1), {"sam_where": ["bias"]}, "sam_where=.'bias'. chooses weights to perturb"),
        (Fused(1), {"sam_when": "adaptive"}, "adaptive.* decides by the whole gradient at w"),
    ],
)
def test_what_is_refused(
    model: nn.Module, settings: dict[str, Any], message: str, accumulation: int, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=message):
        make_trainer(
            tmp_path,
            built=model,
            data=DATA,
            sam="head_sam",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            **settings,
        ).train()
    assert not {"forward", "_compiled_call_impl"} & vars(model).keys()


def test_the_head_is_found_by_its_name() -> None:
    model = bert()
    assert find_head(model, "classifier") is find_head(model, None) is model.classifier
    attention = model.bert.encoder.layer[0].attention.self
    assert find_head(model, r"layer\.0\..*value") is attention.value
    with pytest.raises(ValueError, match="several linear layers of .*encoder.layer.0.*query"):
        find_head(model, "query|value")
    with pytest.raises(ValueError, match="BertModel has no output head"):
        find_head(model.bert, None)
    adapted = lora_llama(["q_proj", "lm_head"])
    assert find_head(adapted, None) is adapted.base_model.model.lm_head


def test_functional_sam_is_two_passes_by_hand(tmp_path: Path) -> None:
    """The logits' gradient at w, pulled back at w + eps; with dropout and two micro-batches."""
    trainer = trainer_of(
        "llama",
        tmp_path,
        sam="functional_sam",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    twin = trainer_of("llama", tmp_path / "twin", sam="none").model.train()
    twin.load_state_dict(trainer.model.state_dict())
    params, update = list(twin.parameters()), type(trainer._run).update

    def logits(batches: list[Any]) -> list[Tensor]:
        torch.set_rng_state(state)
        return [twin(input_ids=batch["input_ids"]).logits for batch in batches]

    def by_hand(batches: list[Any]) -> list[Tensor]:
        here = logits(batches)
        count = sum(int(batch["labels"][:, 1:].ne(-100).sum()) for batch in batches)
        loss: Any = sum(
            functional.cross_entropy(
                z[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
            for z, batch in zip(here, batches, strict=True)
        )
        slopes = torch.autograd.grad(loss / count, here, retain_graph=True)
        gradient = torch.autograd.grad(loss / count, params)
        norm = sum(float(g.square().sum()) for g in gradient) ** 0.5
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, gradient, strict=True):
                p += RHO * g / norm
        there = torch.autograd.grad(logits(batches), params, slopes)
        return [w - LR * u for w, u in zip(before, there, strict=True)]

    def both(run: Any, window: Any) -> Tensor:
        nonlocal state
        state = torch.get_rng_state()
        after = by_hand([batch.inputs for batch in window.batches])
        with torch.no_grad():
            for p, w in zip(params, after, strict=True):
                p.copy_(w)
        torch.set_rng_state(state)
        return update(run, window)

    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer._run), "update", both)
        trainer.train()
    assert_equal(values(trainer.model), values(twin), 1e-7)  # llama's loss is float32 inside


@pytest.mark.parametrize(("rows", "width"), [(64, 128), (128, 32)], ids=["few rows", "many rows"])
def test_no_more_than_another_copy_of_the_logits(rows: int, width: int) -> None:
    """At the peak of forward and backward, beside the plain pass's; the loss is the same again."""
    vocabulary = 4000
    draw = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, width, generator=draw).requires_grad_() for n in (rows, vocabulary))
    labels = torch.randint(0, vocabulary, (rows,), generator=draw)

    def loss_of(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    def peak(tapped: bool) -> int:
        engine = SimpleNamespace(local_ascent=True, ranks=1)
        readings = SimpleNamespace(loss=None, values={})
        step = HeadStep(SimpleNamespace(engine=engine, readings=readings), lambda norm: 0.05 / norm)
        with Allocations() as found:
            logits = h @ w.T
            if tapped:
                logits = step(h, logits, loss_of)
            loss = loss_of(logits)
            del logits
            loss.backward()
            h.grad = w.grad = None
        return max(found.peaks.values())

    copy = 4 * rows * vocabulary
    assert peak(tapped=True) - peak(tapped=False) < 1.15 * copy
