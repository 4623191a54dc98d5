# SPDX-License-Identifier: Apache-2.0
"""An ascent along the gradient of another loss: against a hand-written loop, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.two_losses import Unlearning, class_weighted, pairs
from hf_sam import SAM, Landscape, SAMTrainer
from tests.toys import Bowl, assert_equal, bert, examples, llama, logged, make_trainer

RHO, LR = 0.3, 0.1
Losses = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def unlearning_losses(model: nn.Module) -> Losses:
    def forget(batch: Any) -> Tensor:
        return -model(**batch["forget"]).loss

    return forget, lambda batch: forget(batch) + 2.0 * model(**batch["retain"]).loss


def weighted_losses(model: nn.Module) -> Losses:
    def logits(batch: Any) -> Tensor:
        return model(input_ids=batch["input_ids"]).logits

    weights = torch.tensor([1.0, 9.0], dtype=torch.float64)
    return (
        lambda batch: functional.cross_entropy(logits(batch), batch["labels"], weights),
        lambda batch: functional.cross_entropy(logits(batch), batch["labels"]),
    )


class Doubled(Unlearning):
    gamma = 2.0


def both_sides() -> list[dict[str, Any]]:
    """Pairs of texts, all of whose tokens are labels."""
    tokens = [e["input_ids"] for e in examples("llama", 96)]
    rows = [{"input_ids": t, "labels": t} for t in tokens]
    return [{"forget": a, "retain": b} for a, b in zip(rows[::2], rows[1::2], strict=True)]


KINDS: dict[str, tuple[Callable[[nn.Module], Losses], dict[str, Any]]] = {
    "unlearning": (
        unlearning_losses,
        {"model": "llama", "cls": Doubled, "collator": pairs, "remove_unused_columns": False},
    ),
    "class weights": (weighted_losses, {"model": "bert"}),
}


def trainer_of(kind: str, folder: Path, **more: Any) -> Any:
    """A trainer with dropout, so that both losses see the same masks."""
    built = (llama if kind == "unlearning" else bert)(0.1).double()
    settings = {"optim": "sgd", "learning_rate": LR, "lr_scheduler_type": "constant"}
    settings |= {"max_grad_norm": 0.0, "sam_rho": RHO, "max_steps": 3, "dtype": torch.float64}
    if kind == "unlearning":
        settings["data"] = both_sides()
    if kind == "class weights":
        settings["ascent_loss_func"] = class_weighted([1.0, 9.0])
    return make_trainer(folder, built=built, **KINDS[kind][1] | settings | more)


def update_by_hand(model: nn.Module, losses: Losses, batches: list[Any]) -> tuple[float, float]:
    """One update of the loop; returns the loss of the ascent at w and the trained one there."""
    params = [p for p in model.parameters() if p.requires_grad]
    state = torch.get_rng_state()
    found = []
    before = [p.detach().clone() for p in params]
    for loss_of in losses:
        model.zero_grad()
        torch.set_rng_state(state)
        loss = sum(loss_of(batch) / len(batches) for batch in batches)
        loss.backward()  # type: ignore[union-attr]
        found.append(float(loss.detach()))  # type: ignore[union-attr]
        with torch.no_grad():
            if loss_of is losses[0]:
                norm = sum(float(p.grad.square().sum()) for p in params) ** 0.5  # type: ignore[union-attr]
                for p in params:
                    p += RHO * p.grad / norm  # type: ignore[operator]
            else:
                for p, w in zip(params, before, strict=True):
                    p.copy_(w - LR * p.grad)  # type: ignore[operator]
    return found[0], found[1]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_hand_written_loop(kind: str, accumulation: int, tmp_path: Path) -> None:
    size = 8 // accumulation
    trainer = trainer_of(
        kind,
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    twin = (llama if kind == "unlearning" else bert)(0.1).double().train()
    twin.load_state_dict(trainer.model.state_dict())
    losses, update, seen = KINDS[kind][0](twin), type(trainer._run).update, []

    def both(run: Any, window: Any) -> Tensor:
        state = torch.get_rng_state()
        seen.append(update_by_hand(twin, losses, [b.inputs for b in window.batches]))
        torch.set_rng_state(state)
        return update(run, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer._run), "update", both)
        trainer.train()
    assert_equal(list(trainer.model.parameters()), list(twin.parameters()), 1e-12)
    there = pytest.approx([b for _, b in seen], rel=1e-6)
    assert logged(trainer, "loss") == there, "the trained loss, where the update is taken"
    assert logged(trainer, "sam/ascent_loss") == pytest.approx([a for a, _ in seen], rel=1e-6)
    assert "sam/sharpness" not in trainer.state.log_history[0], "two losses are not comparable"


def test_a_radius_of_zero_is_the_plain_trainer(tmp_path: Path) -> None:
    """Bit for bit, with the stream of random numbers: the ascent leaves no trace."""
    runs = []
    for sam in ({"sam_rho": 0.0}, {"sam": "none", "sam_rho": None, "ascent_loss_func": None}):
        trainer = trainer_of("class weights", tmp_path, **sam)
        trainer.train()
        runs.append((trainer, torch.get_rng_state()))
    (ours, state), (plain, plain_state) = runs
    assert_equal(list(ours.model.parameters()), list(plain.model.parameters()))
    assert torch.equal(state, plain_state) and logged(ours) == logged(plain)


def test_a_budget_is_of_the_loss_that_rises(tmp_path: Path) -> None:
    trainer = trainer_of("class weights", tmp_path, sam_rho="budget:0.1:10", max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    wanted = 0.1 * entry["sam/ascent_loss"] / entry["sam/ascent_grad_norm"]
    assert entry["sam/perturbation_norm"] == pytest.approx(wanted, rel=1e-5)


def test_on_a_bare_landscape() -> None:
    """The backward is told which loss is asked for."""
    bowl, asked = Bowl(), []

    def backward(batch: Any, share: Any = 1.0, ascending: bool = False) -> Tensor:
        asked.append(ascending)
        return bowl.backward((batch[0], batch[1] + ascending), share)

    params = (bowl.params, [bowl.batch(0)], backward)
    found = SAM(RHO)(at := Landscape(*params, two_losses=True))
    assert asked == [True, False] and "sharpness" not in at.readings
    plain = Landscape(*params)
    with plain.perturbed(direction(bowl)):
        wanted = plain.gradient()
    for a, b in zip(found, wanted, strict=True):
        assert a is b or torch.allclose(a, b, rtol=0, atol=1e-14)


def direction(bowl: Bowl) -> Any:
    x, y = bowl.batch(0)
    here = Landscape(bowl.params, [(x, y + 1)], bowl.backward).gradient()
    return here.mul_(RHO / here.norm())


@pytest.mark.parametrize("key", ["none", "esam", "gsam", "looksam", "stable_sam", "head_sam"])
def test_methods_that_use_the_gradient_otherwise_are_refused(key: str, tmp_path: Path) -> None:
    trainer = trainer_of("class weights", tmp_path, sam=key, sam_rho=None)
    with pytest.raises(ValueError, match="does not ascend along a gradient .* sam='sam'"):
        trainer.train()


def test_two_ascent_losses_are_refused(tmp_path: Path) -> None:
    class Both(SAMTrainer):
        def compute_ascent_loss(self, *args: Any) -> None: ...

    with pytest.raises(ValueError, match="Both has a method compute_ascent_loss: give one"):
        make_trainer(tmp_path, cls=Both, ascent_loss_func=class_weighted([1.0, 1.0]))
