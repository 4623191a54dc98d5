# SPDX-License-Identifier: Apache-2.0
"""Mixed precision, loss scaling, and weights stored in 16 bits."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAM, SAMTrainer
from hf_sam.engine.precision import what_rounding_leaves
from hf_sam.methods import asks
from hf_sam.sweeps import GROUPED, forced
from tests.cases import CASES, Case
from tests.toys import assert_equal, bert, logged, lora, make_trainer, train, weights

KEYS = [case.key for case in CASES]


class Bump(nn.Module):
    """A regression through a tanh, small enough to compare precisions over many updates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error."""
        out = self.second(torch.tanh(self.first(x))).squeeze(-1)
        return {"loss": (out.float() - labels).square().mean()}


def bump_data(n: int = 64) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 8, generator=draw)
    y = torch.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2].clamp(-1, 1)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


class Notes(TrainerCallback):
    """Notes after every update what a skipped one must leave alone."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.moved: list[bool] = []
        self.scales: list[float] = []
        self.rates: list[float] = []
        self.finite: list[bool] = []
        self.optimizer_moved: list[bool] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.before, self.optimizer_before = weights(self.trainer), self.moments()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self.moved.append(not same(self.before, weights(trainer)))
        self.optimizer_moved.append(not same(self.optimizer_before, self.moments()))
        self.scales.append(trainer.accelerator.scaler.get_scale())
        self.rates.append(trainer.lr_scheduler.get_last_lr()[0])
        if isinstance(trainer, SAMTrainer):
            self.finite.append(all_finite(trainer._method.state_dict()))

    def moments(self) -> list[Tensor]:
        state = self.trainer.optimizer.state.values()
        return [v.clone() for s in state for v in s.values() if isinstance(v, Tensor)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def all_finite(state: dict[str, Any]) -> bool:
    for value in state.values():
        entries = value if not isinstance(value, (int, float, Tensor)) else [value]
        for entry in entries:
            if entry is not None and not bool(torch.as_tensor(entry).isfinite().all()):
                return False
    return True


def scaled(
    folder: Path,
    *,
    autocast: bool = True,
    scale: float = 2.0**12,
    overflow: tuple[int, int] | None = None,
    **settings: Any,
) -> tuple[Trainer, Notes]:
    """Train with fp16=True; a CPU gets the GradScaler that accelerate makes for GPUs only.

    Args:
        folder: for the trainer.
        autocast: whether forward passes run in float16; otherwise only the loss is scaled.
        scale: the scaler's first scale.
        overflow: (update, backward pass in it), from 0, whose loss is made infinite.
        settings: of the trainer.
    """
    trainer = make_trainer(folder, fp16=True, **settings)
    accelerator, device = trainer.accelerator, trainer.args.device.type
    accelerator.native_amp = True
    accelerator.autocast_handler = AutocastKwargs(enabled=autocast)
    accelerator.scaler = torch.amp.GradScaler(device, init_scale=scale, growth_interval=1000)
    notes = Notes(trainer)
    trainer.add_callback(notes)
    backward, count = accelerator.backward, {}

    def overflowing(loss: Tensor, **kwargs: Any) -> None:
        step = trainer.state.global_step
        now = (step, count.get(step, 0))
        count[step] = now[1] + 1
        backward(loss * math.inf if now == overflow else loss, **kwargs)

    accelerator.backward = overflowing
    trainer.train()
    return trainer, notes


def by_key(key: str) -> Case:
    return next(case for case in CASES if case.key == key)


# -- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_both_passes_run_under_autocast_at_their_own_weights(tmp_path: Path, kind: str) -> None:
    """One update equals the formula, written out with two forward passes under autocast."""
    settings = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0, "sam_rho": 0.1}
    seen: list[Any] = []
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]

    class Seeing(SAMTrainer):
        def training_step(self, model: nn.Module, inputs: Any, *rest: Any) -> Tensor:
            seen.append(dict(inputs))
            return super().training_step(model, inputs, *rest)

    if kind == "bf16":
        trainer = train(tmp_path, cls=Seeing, bf16=True, **settings)
    else:
        trainer, _ = scaled(tmp_path, cls=Seeing, scale=1.0, **settings)
    network = bert()

    def gradient() -> list[Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = network(**seen[0]).loss
        loss.backward()
        return [p.grad.clone() for p in network.parameters()]

    here = gradient()
    norm = math.sqrt(sum(float(g.square().sum()) for g in here))
    with torch.no_grad():
        for p, g in zip(network.parameters(), here, strict=True):
            p.add_(g * (0.1 / norm))
    expected = [p - 1e-2 * g for p, g in zip(bert().parameters(), gradient(), strict=True)]
    assert_equal(weights(trainer), expected, 1e-7)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_rho_zero_is_the_plain_trainer_under_autocast(tmp_path: Path, kind: str) -> None:
    settings = {"dropout": 0.2, "max_steps": 6}
    if kind == "bf16":
        sam = train(tmp_path, bf16=True, sam_rho=0, **settings)
        plain = train(tmp_path, cls=Trainer, bf16=True, **settings)
    else:
        sam, _ = scaled(tmp_path, sam_rho=0, **settings)
        plain, _ = scaled(tmp_path, cls=Trainer, **settings)
    assert_equal(weights(sam), weights(plain))
    assert logged(sam) == logged(plain) and logged(sam, "grad_norm") == logged(plain, "grad_norm")


@pytest.mark.parametrize("key", ["sam", pytest.param("asam", marks=pytest.mark.slow)])
def test_fp16_follows_fp32(tmp_path: Path, key: str) -> None:
    """To 1e-3 in every weight and loss, over 100 updates with momentum."""
    settings: dict[str, Any] = {
        "data": bump_data(),
        "sam": key,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.02,
        "max_steps": 100,
    }
    half, notes = scaled(tmp_path, built=Bump(), **settings)
    single = train(tmp_path, built=Bump(), **settings)
    assert all(notes.moved) and len(notes.moved) == 100
    assert logged(half)[0] != logged(single)[0], "the forward pass really ran in float16"
    assert logged(single)[-1] < 0.5 * logged(single)[0], "the toy learns something"
    assert_equal(weights(half), weights(single), 1e-3)
    assert logged(half) == pytest.approx(logged(single), abs=1e-3)


# -- loss scaling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_the_scale_is_invisible(tmp_path: Path, key: str) -> None:
    """A power of two changes no bit of weights and state: methods see unscaled gradients."""
    row = by_key(key)
    settings = {"sam": key, "sam_options": row.options or None, "model": row.toy("bert")}
    settings["max_steps"] = 3
    trainer, notes = scaled(tmp_path, autocast=False, scale=2.0**10, **settings)
    unscaled = train(tmp_path, **settings)
    assert notes.scales == [2.0**10] * 3
    assert_equal(weights(trainer), weights(unscaled))
    mine, theirs = (t._method.state_dict() for t in (trainer, unscaled))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        pairs = [(value, theirs[name])]
        if not isinstance(value, (int, float, Tensor)):
            pairs = list(zip(value, theirs[name], strict=True))
        for a, b in pairs:
            assert a is b is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name
    for name in ("sam/sharpness", "sam/ascent_grad_norm", "grad_norm"):
        assert logged(trainer, name) == logged(unscaled, name)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_a_plain_overflow_is_what_trainer_makes_of_it(
    tmp_path: Path, optim: str, accumulation: int
) -> None:
    """The reference for the next test; accelerate does not notice the skip of a fused optimizer."""
    settings = {"cls": Trainer, "optim": optim, "max_steps": 4}
    _, notes = scaled(
        tmp_path, overflow=(1, 0), gradient_accumulation_steps=accumulation, **settings
    )
    assert notes.moved == [True, False, True, True]
    assert (notes.rates[1] == notes.rates[0]) == (optim != "adamw_torch_fused")


UPDATES = 3
PASSES = [
    (case.key, update, number)
    for case in CASES
    for update in ((0, 1) if case.stateful else (1,))
    for number in range(case.passes(update, UPDATES))
    if number not in case.blind
]


@pytest.mark.parametrize(("key", "update", "number"), PASSES)
def test_an_overflow_in_any_pass_skips_the_update(
    tmp_path: Path, key: str, update: int, number: int
) -> None:
    """No weight and no moment moves, the scale is halved, the rate stays, no state is poisoned."""
    trainer, notes = scaled(
        tmp_path,
        autocast=False,
        overflow=(update, number),
        model=by_key(key).toy("bert"),
        sam=key,
        sam_options=by_key(key).options or None,
        optim="adamw_torch",
        max_steps=UPDATES,
    )
    expected = [step != update for step in range(UPDATES)]
    assert notes.moved == expected
    assert notes.optimizer_moved == expected
    assert notes.scales == [2.0**12 if step < update else 2.0**11 for step in range(UPDATES)]
    rates = [1e-2, *notes.rates]
    assert [a != b for a, b in zip(rates, rates[1:], strict=False)] == expected
    assert notes.finite == [True] * UPDATES
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    perturbed = [e for e in trainer.state.log_history if e.get("sam/share_perturbed_updates")]
    skips = [e["sam/skipped"] for e in perturbed]
    case = by_key(key)
    # AE-SAM does not perturb an update whose gradient at w is not finite.
    gated = key == "ae_sam" and number == 0
    perturbs = (case.one_pass or case.passes(update, UPDATES) > 1) and not gated
    # What overflowed is no direction for the next update; a momentum still has the updates before.
    again = key == "previous_sam" and update > 0
    assert sum(skips) == perturbs + again


def test_the_log_counts_skips_since_the_last_one(tmp_path: Path) -> None:
    settings = {"autocast": False, "max_steps": 6, "logging_steps": 3}
    trainer, _ = scaled(tmp_path, overflow=(1, 0), **settings)
    assert logged(trainer, "sam/skipped") == [1.0, 0.0]


def test_repeated_overflows_find_the_scale(tmp_path: Path) -> None:
    """A scale that is far too large is halved update by update, without a step, until it fits."""
    trainer, notes = scaled(tmp_path, scale=2.0**30, max_steps=20)
    assert notes.moved[:6] == [False] * 6 and notes.moved[-1]
    scales = [2.0**30, *notes.scales]
    halved = [b == a / 2 for a, b in zip(scales, scales[1:], strict=False)]
    assert halved == [not moved for moved in notes.moved]
    assert logged(trainer, "sam/skipped") == [float(not moved) for moved in notes.moved]
    assert all(notes.finite)


def test_gradients_overflow_in_float16_itself(tmp_path: Path) -> None:
    """Not injected: activations beyond 65504 in one batch of otherwise harmless data."""
    data = bump_data(32)
    for example in data[8:16]:
        example["x"] = example["x"] * 1e6
    settings = {"built": Bump(), "data": data, "train_sampling_strategy": "sequential"}
    trainer, notes = scaled(tmp_path, max_steps=4, optim="adamw_torch", **settings)
    assert notes.moved == [True, False, True, True]
    assert logged(trainer, "sam/skipped") == [0.0, 1.0, 0.0, 0.0]


def test_a_nan_batch_without_a_scaler_is_as_in_trainer(tmp_path: Path) -> None:
    """There is nothing to skip it: the gradient is NaN, as the plain Trainer's is."""
    data = bump_data(32)
    data[9]["labels"] = torch.tensor(math.nan)
    settings = {"data": data, "train_sampling_strategy": "sequential", "max_steps": 2}
    sam = train(tmp_path, built=Bump(), **settings)
    plain = train(tmp_path, built=Bump(), cls=Trainer, **settings)
    for a, b in zip(weights(sam), weights(plain), strict=True):
        assert torch.equal(a.isnan(), b.isnan()) and bool(a.isnan().all())
    assert logged(sam, "sam/skipped") == [0.0, 1.0], "the direction had no length"
    assert logged(sam, "sam/perturbation_norm")[1] == 0.0


def test_scaling_asks_the_device_for_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """An update under a scaler looks at as many values on the host as the plain Trainer's does."""
    asked: dict[str, int] = {}

    def counting(name: str) -> Any:
        original = getattr(Tensor, name)

        def count(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            asked[running] = asked.get(running, 0) + 1
            return original(self, *args, **kwargs)

        return count

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
        monkeypatch.setattr(Tensor, name, counting(name))
    quiet = {"logging_steps": 1000, "logging_nan_inf_filter": False, "max_steps": 5}
    running = "a toy"
    wanted = asks(SAM())
    monkeypatch.setattr("hf_sam.run.asks", lambda method, batches: wanted)  # asked on a toy
    for cls in (Trainer, SAMTrainer):
        running = cls.__name__
        trainer = make_trainer(tmp_path, cls=cls, fp16=True, **quiet)
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        with forced(GROUPED):  # a CPU may look at its own numbers
            trainer.train()
    assert asked["SAMTrainer"] - asked["Trainer"] <= 2, "once per run, for the log at its end"


# -- weights stored in 16 bits --------------------------------------------------------------------


def warnings_of_rounding(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "rounds" in r.getMessage()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_half_precision_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    """The warning has the number that the first update's perturbation really has."""
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        trainer = make_trainer(tmp_path, dtype=dtype, max_steps=3, sam_rho=0.01)
        inside: list[list[Tensor]] = []

        def forward(module: nn.Module, *args: Any) -> None:
            inside.append([p.detach().clone() for p in module.parameters()])

        wanted: list[Any] = []
        method = type(trainer._method)
        original = method.update

        def update(self: Any, at: Any) -> Any:
            if at.params[0] is not trainer._run.parameters.params[0]:
                return original(self, at)  # on the toy that asks what the method needs
            perturbed = at.perturbed
            at.perturbed = lambda eps: wanted.append([e.clone() for e in eps]) or perturbed(eps)
            return original(self, at)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(method, "update", update)
            trainer.model.register_forward_pre_hook(forward)
            trainer.train()
    said = warnings_of_rounding(caplog)
    assert len(said) == 1
    names = {id(p): i for i, p in enumerate(trainer.model.parameters())}
    order = [names[id(p)] for p in trainer._run.parameters.params]
    actual = torch.cat([(inside[1][i].double() - inside[0][i].double()).flatten() for i in order])
    eps = torch.cat([e.double().flatten() for e in wanted[0]])
    cosine = float(actual @ eps / actual.norm() / eps.norm())
    moved = float((actual != 0).double().mean())
    assert f"cosine between the wanted and the actual perturbation is {cosine:.3f}" in said[0]
    assert f"{moved:.1%} of them move" in said[0]
    assert str(dtype).removeprefix("torch.") in said[0] and "bf16=True" in said[0]


def test_nothing_is_said_where_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under autocast, without a perturbation, and for a float32 adapter over a bfloat16 base."""
    adapted = lora()
    for p in adapted.parameters():
        if not p.requires_grad:
            p.data = p.data.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        train(tmp_path, bf16=True, max_steps=2)
        train(tmp_path, dtype=torch.bfloat16, max_steps=2, sam="none")
        train(tmp_path, dtype=torch.bfloat16, max_steps=2, sam_rho=0.0)
        trainer = make_trainer(tmp_path, bf16=True, max_steps=2)
        trainer = SAMTrainer(model=adapted, args=trainer.args, train_dataset=trainer.train_dataset)
        trainer.train()
    assert warnings_of_rounding(caplog) == []
    assert {p.dtype for p in adapted.parameters()} == {torch.float32, torch.bfloat16}


def test_what_rounding_leaves() -> None:
    """By hand: beside 1, bfloat16 stores steps of 1/128, and rounds to the nearest."""
    one = torch.ones(4, dtype=torch.bfloat16)
    eps = torch.tensor([1 / 128, 1 / 1024, 0.0, -1 / 128], dtype=torch.bfloat16)
    cosine, moved = what_rounding_leaves([(one, eps)])
    wanted = eps.double()
    actual = torch.tensor([1 / 128, 0.0, 0.0, -1 / 128], dtype=torch.float64)
    assert cosine == pytest.approx(float(wanted @ actual / wanted.norm() / actual.norm()))
    assert moved == 0.5
    assert what_rounding_leaves([(one, eps / 1024)]) == (0.0, 0.0)
    assert what_rounding_leaves([(one.float(), eps.float())])[0] == pytest.approx(1.0, abs=1e-9)
    assert math.isnan(what_rounding_leaves([(one, eps * 0)])[0])
    assert math.isnan(what_rounding_leaves([(one, eps * math.nan)])[0])


# -- on an accelerator ----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_precisions_on_an_accelerator(tmp_path: Path, kind: str, key: str) -> None:
    """With accelerate's own autocast and GradScaler; rho = 0 is the plain Trainer."""
    settings: dict[str, Any] = {"use_cpu": False, "max_steps": 12}
    settings |= {kind: True} if kind != "fp32" else {}
    case = by_key(key)
    settings |= {"sam_options": case.options or None, "model": case.toy("bert")}
    trainer = train(tmp_path, sam=key, **settings)
    assert (trainer.accelerator.scaler is not None) == (kind == "fp16")
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert all_finite(trainer._method.state_dict())
    assert all(math.isfinite(loss) for loss in logged(trainer))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_rho_zero_on_an_accelerator(tmp_path: Path, kind: str) -> None:
    settings = {"use_cpu": False, "max_steps": 12, "dropout": 0.1, kind: True}
    sam = train(tmp_path, sam_rho=0, **settings)
    plain = train(tmp_path, cls=Trainer, **settings)
    assert_equal(weights(sam), weights(plain), 1e-5)  # atomics may sum in another order


@pytest.mark.gpu
def test_fp16_follows_fp32_on_an_accelerator(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": bump_data(),
        "use_cpu": False,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.02,
        "max_steps": 100,
    }
    half = train(tmp_path, built=Bump(), fp16=True, **settings)
    single = train(tmp_path, built=Bump(), **settings)
    skipped = int(sum(logged(half, "sam/skipped")))
    assert skipped < 4, "accelerate starts at 65536, which this loss may have to leave"
    assert_equal(weights(half), weights(single), 1e-3 if not skipped else 5e-2)
