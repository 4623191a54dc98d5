# SPDX-License-Identifier: Apache-2.0
"""Parameters that change in the middle of a run: groups added, layers unfrozen and frozen."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_sam import METHODS, SAMMixin, SAMTrainer
from hf_sam.host.learning_rate import RateShare
from hf_sam.landscape.data import take
from tests.cases import CASES, Case
from tests.toys import assert_equal, bert, logged, make_trainer, train, weights

BODY, HEAD = "bert.encoder", "classifier"
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def frozen_but(*prefixes: str) -> nn.Module:
    model = bert().double()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(prefixes))
    return model


def with_adapters(model: nn.Module) -> nn.Module:
    """The model with adapters in the encoder, which are trained beside what is trained already."""
    from peft import LoraConfig, inject_adapter_in_model

    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    found = inject_adapter_in_model(LoraConfig(r=2, target_modules=["query", "value"]), model)
    for name, p in found.named_parameters():
        p.requires_grad_("lora_" in name or trained[name.replace(".base_layer", "")])
    return found.double()


class Change(TrainerCallback):
    """Makes parameters trainable or not before the update number `at`.

    Attributes:
        grads: the gradient of the watched weight that each update hands to the optimizer.
    """

    def __init__(self, at: int, prefix: str, trainable: bool, group: bool = False) -> None:
        self.at, self.prefix, self.trainable, self.group = at, prefix, trainable, group
        self.grads: list[torch.Tensor | None] = []

    def on_step_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if state.global_step != self.at:
            return
        named = model.named_parameters()
        changed = [p for n, p in named if n.startswith(self.prefix) and not self._has(n)]
        for p in changed:
            p.requires_grad_(self.trainable)
        if self.group:
            inner = getattr(optimizer, "optimizer", optimizer)
            inner.param_groups[0]["params"].extend(changed)

    def _has(self, name: str) -> bool:
        """Whether the optimizer has a parameter of this name from the beginning."""
        return self.group and "lora_" in name

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        grad = model.bert.encoder.layer[0].intermediate.dense.weight.grad
        self.grads.append(None if grad is None else grad.clone())


def run(folder: Path, change: Change, *, held: str = "", **more: Any) -> Any:
    """Train with an optimizer that holds the parameters whose names begin with `held`."""
    model = frozen_but(*more.pop("trainable", [HEAD]))
    model = with_adapters(model) if more.pop("adapters", False) else model
    params = [p for n, p in model.named_parameters() if n.startswith(held) or "lora_" in n]
    optimizer = torch.optim.SGD(params, lr=0.05)
    cls = more.pop("cls", SAMTrainer)

    class With(cls):  # type: ignore[misc, valid-type]
        def create_optimizer(self, *_: Any, **__: Any) -> Any:
            self.optimizer = optimizer
            return optimizer

    settings = {"max_steps": 4, "max_grad_norm": 0.0, "built": model, "dtype": torch.float64}
    trainer = make_trainer(folder, cls=With, callbacks=[change], **{**settings, **more})
    trainer.train()
    return trainer


@every_case
def test_a_layer_that_joins_the_optimizer_has_one_gradient(case: Case, tmp_path: Path) -> None:
    """At rho = 0 the plain Trainer's; the sum of all passes otherwise."""
    if case.batch_coupled:
        pytest.skip("the method selects examples")
    runs = {}
    for key, more in (
        ("none", {"sam": "none"}),
        (case.key, {"sam": case.key, "sam_options": {**case.options, **no_radius(case)}}),
    ):
        change = Change(2, BODY, trainable=True, group=True)
        radius = {"sam_rho": 0.0} if key != "none" and "rho" in case.rho_zero else {}
        run(tmp_path / key, change, held=HEAD, adapters=case.adapters, **more, **radius)
        runs[key] = change.grads
    assert [g is None for g in runs["none"]] == [True, True, False, False]
    for ours, plain in zip(runs[case.key], runs["none"], strict=True):
        assert (ours is None) == (plain is None)
        if ours is not None and plain is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)


def no_radius(case: Case) -> dict[str, Any]:
    return {k: v for k, v in case.rho_zero.items() if k != "rho"}


class Watching(SAMTrainer):
    """Notes the encoder's weight in every pass."""

    def take(self, inputs: Any, index: Any) -> Any:
        return take(inputs, index)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        weight = model.bert.encoder.layer[0].intermediate.dense.weight
        seen.append(weight.detach().clone())
        return super().compute_loss(model, inputs, *args, **kwargs)


seen: list[torch.Tensor] = []


@pytest.mark.parametrize("sam", ["sam", "friendly_sam", "ssam_d", "looksam"])
def test_an_unfrozen_layer_is_perturbed_from_then_on(sam: str, tmp_path: Path) -> None:
    seen.clear()
    options = {"k": 1} if sam == "looksam" else None
    change = Change(2, BODY, trainable=True)
    run(tmp_path, change, cls=Watching, sam=sam, sam_rho=0.5, sam_options=options)
    moved = [not torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert moved == [False, False, True, True]


@every_case
def test_a_frozen_layer_is_left_alone(case: Case, tmp_path: Path) -> None:
    """Nothing of it moves, or is perturbed, after it was frozen; the run goes on."""
    seen.clear()
    change = Change(2, BODY, trainable=False)
    trainable = [BODY, HEAD]
    trainer = run(
        tmp_path,
        change,
        cls=Watching,
        trainable=trainable,
        adapters=case.adapters,
        sam=case.key,
        sam_options=case.options,
        max_steps=5,
    )
    assert trainer.state.global_step == 5
    last = seen[-1]
    assert sum(torch.equal(s, last) for s in seen) >= 3, "the last updates' passes"


def test_what_is_left_to_perturb_may_vanish(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; plain updates from then on."""
    change = Change(1, BODY, trainable=False)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer = run(tmp_path, change, trainable=[BODY, HEAD], sam_where=["encoder"])
    said = [r.getMessage() for r in caplog.records if "not perturbed from here on" in r.message]
    assert len(said) == 1
    norms = logged(trainer, "sam/perturbation_norm")
    assert norms[0] > 0 and norms[1:] == [0.0] * 3


def test_weights_outside_the_optimizer_have_the_plain_gradient(tmp_path: Path) -> None:
    """Trainer clips by them, too: of the whole update, also under accumulation."""
    logs, ends = [], []
    for sam in ("none", "sam"):
        trainer = run(
            tmp_path / sam,
            Change(99, BODY, trainable=True),
            held=HEAD,
            trainable=[""],
            sam=sam,
            sam_rho=None if sam == "none" else 0.0,
            gradient_accumulation_steps=3,
            per_device_train_batch_size=4,
            max_grad_norm=0.05,
        )
        logs.append(logged(trainer, "grad_norm"))
        ends.append(weights(trainer))
    assert logs[1] == pytest.approx(logs[0], rel=1e-12)
    assert_equal(*ends, tolerance=1e-12)


# -- steps of the user's own, in front of the mixin and behind it --------------------------------


class Attack:
    """FGM: adds the gradient at attacked embeddings."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        copied = dict(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        weight = model.bert.embeddings.word_embeddings.weight
        before = weight.data.clone()
        if weight.grad is not None:
            weight.data.add_(0.5 * weight.grad / (weight.grad.norm() + 1e-12))
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            attacked = self.compute_loss(model, copied)  # type: ignore[attr-defined]
        self.accelerator.backward(attacked)  # type: ignore[attr-defined]
        weight.data.copy_(before)
        return loss


class InFront(Attack, SAMTrainer):
    """The step wraps the mixin's."""


class Attacking(Attack, Trainer):
    """The step wraps Trainer's."""


class Behind(SAMMixin, Attacking):
    """The mixin runs the step in every pass."""


def test_gradients_that_a_step_in_front_adds_are_refused(tmp_path: Path) -> None:
    """With accumulation all but the last ones would vanish."""
    with pytest.raises(NotImplementedError, match=r"Attack.training_step adds.*\(SAMMixin, "):
        train(tmp_path, cls=InFront, gradient_accumulation_steps=2, max_steps=2)


def test_gradients_that_a_step_behind_adds_are_kept(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "cls": Behind, "dtype": torch.float64}
    plain = train(tmp_path / "plain", sam="none", **settings)
    ours = train(tmp_path / "ours", sam_rho=0.0, **settings)
    assert_equal(weights(ours), weights(plain))


class Timed(SAMTrainer):
    """Wraps the step, and computes a loss of its own: nothing to refuse."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().training_step(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_a_step_that_only_wraps_is_not_accused(tmp_path: Path) -> None:
    assert train(tmp_path, cls=Timed, max_steps=2).state.global_step == 2


# -- the learning rate's share --------------------------------------------------------------------


def rates(schedule: Any, total: int = 8, lrs: tuple[float, ...] = (0.1,)) -> list[float]:
    """The share before each update, as a Trainer asks for it."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in lrs]
    optimizer = torch.optim.SGD([
        {"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)
    ])
    scheduler = schedule(optimizer)
    share, found = RateShare(optimizer, scheduler, total), []
    for _ in range(total):
        found.append(share())
        optimizer.step()
        scheduler.step()
    return found


lr = torch.optim.lr_scheduler


def test_a_schedule_that_begins_at_its_minimum() -> None:
    found = rates(lambda o: lr.OneCycleLR(o, max_lr=0.1, total_steps=9, div_factor=25))
    assert found[0] == pytest.approx(1 / 25, rel=0.02) and 0.99 < max(found) <= 1
    found = rates(lambda o: lr.CyclicLR(o, base_lr=0.01, max_lr=0.1, step_size_up=4))
    assert found[0] == pytest.approx(0.1) and found[4] == pytest.approx(1.0)
    found = rates(lambda o: lr.LambdaLR(o, lambda step: 1 + step))
    assert found == pytest.approx([(1 + t) / 8 for t in range(8)])
    found = rates(
        lambda o: lr.SequentialLR(
            o, [lr.LinearLR(o, 0.1, 1.0, 4), lr.LinearLR(o, 1.0, 0.0, 4)], milestones=[4]
        )
    )
    assert found[0] == pytest.approx(0.1) and max(found) == pytest.approx(1.0)


def test_the_largest_share_of_the_groups_that_move() -> None:
    constant = [lambda step: 1.0, lambda step: 1.0 / (1 + step)]
    falling = rates(lambda o: lr.LambdaLR(o, constant), lrs=(0.0, 0.1))
    assert falling == pytest.approx([1 / (1 + t) for t in range(8)])
    assert rates(lambda o: lr.LambdaLR(o, constant), lrs=(0.2, 0.1)) == pytest.approx([1.0] * 8)
    assert rates(lambda o: lr.LambdaLR(o, lambda step: 1.0), lrs=(0.0,)) == [0.0] * 8


def test_an_optimizer_may_have_a_largest_rate_or_none() -> None:
    """As torch-optimi's has."""
    for largest, share in ((None, 1.0), (0.4, 0.25)):
        weights = [torch.nn.Parameter(torch.zeros(1))]
        optimizer = torch.optim.SGD([{"params": weights, "max_lr": largest}], lr=0.1)
        assert RateShare(optimizer, None, 10)() == share


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_schedule_itself_is_left_alone(rate: Any) -> None:
    """Also where the rate is a tensor, as torchao's optimizers have it."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = lr.OneCycleLR(optimizer, max_lr=0.5, total_steps=10)

    def looked_at() -> Any:
        return copy.deepcopy((scheduler.last_epoch, dict(optimizer.param_groups[0], params=None)))

    before = looked_at()
    RateShare(optimizer, scheduler, 10)
    assert before == looked_at()


def test_a_radius_in_proportion_follows_the_rate_of_the_group(tmp_path: Path) -> None:
    """Not the arguments' rate, which an optimizer of the user's need not have."""
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    trainer = SAMTrainer(
        model=model,
        args=make_trainer(tmp_path, max_steps=4, sam_rho="lr:0.1", learning_rate=7.0).args,
        train_dataset=make_trainer(tmp_path).train_dataset,
        optimizers=(optimizer, None),
    )
    trainer.train()
    norms = logged(trainer, "sam/perturbation_norm")
    assert norms == pytest.approx([0.1, 0.075, 0.05, 0.025], rel=1e-4)


def test_every_method_keeps_its_state_when_parameters_change() -> None:
    """New ones have none yet, gone ones are forgotten, and order does not matter."""
    from hf_sam import Vector
    from hf_sam.vector import WHOLE

    for key in METHODS:
        method = METHODS[key]()
        method.state["kept"] = Vector([torch.ones(1), torch.full((1,), 2.0)])
        method.realign([1, None, 0], WHOLE)
        kept = method.state.vector("kept")
        if kept is not None:  # a mask is chosen anew
            assert [None if t is None else float(t) for t in kept] == [2.0, None, 1.0]
