# SPDX-License-Identifier: Apache-2.0
"""The laws that hold inside Trainer, for every row of `cases.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from tests.cases import CASES, Case, name_of, rows
from tests.toys import (
    Trained,
    as_left,
    assert_equal,
    assert_same,
    examples,
    logged,
    train,
    trained,
    weights,
)

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def on(*models: str) -> Any:
    """Run a law for every row, on each of these toys, or on the one that stands for it."""
    found = rows(*models)
    return pytest.mark.parametrize(("case", "model"), found, ids=map(name_of, found))


def as_arguments(case: Case, **more: Any) -> dict[str, Any]:
    """Return the row as training arguments, with other hyper-parameters on request."""
    options = {**case.options, **more}
    rho = options.pop("rho", None)
    return {"sam": case.key, "sam_rho": rho, "sam_options": options or None}


class Watch(TrainerCallback):
    """Watches that nobody ever sees perturbed weights: they move in the optimizer's step and
    nowhere else, and that step is SGD's from where they were.
    """

    def __init__(self, moves: bool = False) -> None:
        self.moves = moves  # before the optimizer does
        self.expected: list[torch.Tensor] | None = None
        self.seen: set[str] = set()

    def look(self, event: str, model: torch.nn.Module) -> None:
        self.seen.add(event)
        assert self.expected is not None
        assert_equal([p.detach() for p in model.parameters()], self.expected)

    def on_step_begin(self, args, state, control, model=None, **_):
        if self.expected is None:
            self.expected = [p.detach().clone() for p in model.parameters()]
        self.look("step begin", model)

    def on_substep_end(self, args, state, control, model=None, **_):
        self.look("substep end", model)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        self.seen.add("before the optimizer")
        if not self.moves:
            self.look("before the optimizer", model)
        rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        self.expected = [p.detach().clone() for p in model.parameters()]
        for p, expected in zip(model.parameters(), self.expected, strict=True):
            if p.grad is not None:
                before = optimizer.state[p].get("momentum_buffer")
                moved = p.grad if before is None else before.mul(MOMENTUM).add(p.grad)
                expected.add_(moved, alpha=-rates[p])

    def on_step_end(self, args, state, control, model=None, **_):
        self.look("step end", model)

    def on_evaluate(self, args, state, control, model=None, **_):
        self.look("evaluate", model)

    def on_save(self, args, state, control, model=None, **_):
        self.look("save", model)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        found = load_file(next(folder.glob("*model.safetensors")))
        held = {
            n.replace(".modules_to_save", "").replace(".default", ""): p.detach()
            for n, p in model.named_parameters()
        }
        saved = {n: t for n, t in found.items() if n in held}
        assert len(saved) >= sum(p.requires_grad for p in model.parameters())
        assert_same(saved, {n: held[n] for n in saved})

    def on_log(self, args, state, control, model=None, **_):
        self.look("log", model)


EVENTS = {"step begin", "substep end", "before the optimizer", "step end"}
EVENTS |= {"evaluate", "save", "log"}


MOMENTUM = 0.9
HALF = 3
"""Updates from where a training is resumed, into the next epoch, to its end."""
Watched = Callable[[Case, str], tuple[Trained, set[str], dict[str, Any]]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """One training for laws 1, 5 and 13: dropout, accumulation, evaluation and checkpoints.

    It gives what the training left, the events that were watched, and the settings.
    """
    known: dict[tuple[str, str], Any] = {}

    def get(case: Case, model: str) -> Any:
        if (case.key, model) not in known:
            settings = {
                "model": model,
                "dropout": 0.1,
                "gradient_accumulation_steps": 2,
                "per_device_train_batch_size": 4,
                "max_steps": 2 * HALF,
                "data": examples(model, 36),  # five updates per epoch, the last one of less
                "optim": "sgd",
                "optim_args": f"momentum={MOMENTUM}",
                "eval_data": examples(model, 8),
                **{"save_strategy": "steps", "save_steps": HALF},
                **{"eval_strategy": "steps", "eval_steps": HALF},
                **as_arguments(case),
            }
            folder, watch = tmp_path_factory.mktemp(f"{case}_{model}"), Watch(case.moves)
            left = as_left(train(folder, callbacks=[watch], **settings))
            known[case.key, model] = left, watch.seen, settings
        return known[case.key, model]

    return get


@on("bert", "resnet", "lora")
def test_nobody_sees_perturbed_weights(case: Case, model: str, watched: Watched) -> None:
    """Laws 1 and 13: not callbacks, not evaluation, not saved files, not the optimizer."""
    assert watched(case, model)[1] == EVENTS


@on("bert", "resnet", "llama", "lora")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_rho_zero_is_the_plain_trainer(
    case: Case, model: str, accumulation: int, tmp_path: Path
) -> None:
    """Law 2: weights, optimizer state, buffers, dropout stream, logged loss and gradient norm."""
    common = {
        "model": model,
        "dropout": 0.1,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4,
        "max_steps": 6 if accumulation == 1 else 4,
        "max_grad_norm": 0.5,
    }
    if case.cuts:
        if model.endswith("resnet"):
            pytest.skip("batch norm sees other batches")
        # Adam's division would blow up the rounding of llama's loss, which is float32 inside.
        common |= {"dropout": 0.0, "dtype": torch.float64, "optim": "sgd"}
    sam = as_left(train(tmp_path, **common, **as_arguments(case, **case.rho_zero)))
    plain = trained(**common, sam="none")
    tolerance = 0.0 if case.rho_zero_exact else 1e-6
    assert_equal(sam.weights, plain.weights, tolerance)
    assert_equal(sam.buffers, plain.buffers)
    if case.rho_zero_exact:
        assert torch.equal(sam.random, plain.random), "the dropout stream differs"
        assert_same(sam.optimizer, plain.optimizer)
    if accumulation == 1 and case.rho_zero_exact:
        assert logged(sam) == logged(plain)
        assert logged(sam, "grad_norm") == logged(plain, "grad_norm")
    else:
        assert logged(sam) == pytest.approx(logged(plain), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("model", ["bert", "resnet", "llama", "t5"])
def test_none_is_the_plain_trainer(model: str, tmp_path: Path) -> None:
    """Law 2: `sam="none"` is Trainer itself, bit for bit."""
    common = {"model": model, "dropout": 0.1, "max_steps": 5}
    ours = train(tmp_path / "ours", **common, sam="none")
    plain = train(tmp_path / "plain", **common, cls=Trainer)
    assert_equal(weights(ours), weights(plain))
    assert_equal(list(ours.model.buffers()), list(plain.model.buffers()))
    assert logged(ours) == logged(plain) and logged(ours, "grad_norm") == logged(plain, "grad_norm")


@on("bert", "llama", "smoothed")
def test_accumulation_is_invisible(case: Case, model: str, tmp_path: Path) -> None:
    """Law 3: k micro-batches of b equal one batch of k b, with clipping active and a last,
    shorter window.
    """
    if case.batch_coupled:
        pytest.skip("the method draws or selects examples")
    smoothing = {"label_smoothing_factor": 0.1} if model == "smoothed" else {}
    toy = case.toy("bert") if model == "smoothed" else model
    common = {
        "model": toy,
        "dtype": torch.float64,
        "optim": "sgd" if model == "smoothed" else "adamw_torch",
        "max_grad_norm": 0.05,
        "num_train_epochs": 2,
        "max_steps": -1,
        "data": examples(toy, 20),
        **smoothing,
        **as_arguments(case),
    }
    once = train(tmp_path / "once", per_device_train_batch_size=12, **common)
    thrice = train(
        tmp_path / "thrice", per_device_train_batch_size=4, gradient_accumulation_steps=3, **common
    )
    assert once.state.global_step == thrice.state.global_step == 4
    # Llama's loss is float32 inside, and groups add its parts up in another order.
    assert_equal(weights(once), weights(thrice), 1e-6 if case.cuts else 1e-7)
    assert logged(once) == pytest.approx(logged(thrice), rel=1e-5)
    assert logged(once, "grad_norm") == pytest.approx(logged(thrice, "grad_norm"), rel=1e-5)


def test_none_has_the_same_correction(tmp_path: Path) -> None:
    """Law 3 also for the plain method, whose gradient Trainer makes k times too large for BERT."""
    common = {"dtype": torch.float64, "max_steps": 5, "sam": "none", "optim": "sgd"}
    once = train(tmp_path / "once", per_device_train_batch_size=12, **common)
    thrice = train(
        tmp_path / "thrice", per_device_train_batch_size=4, gradient_accumulation_steps=3, **common
    )
    assert_equal(weights(once), weights(thrice), 1e-12)


def test_a_custom_loss_that_ignores_the_count_is_divided(tmp_path: Path) -> None:
    """Law 3 with compute_loss_func, which Trainer never divides."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    common = {
        "dtype": torch.float64,
        "max_steps": 5,
        "sam": "sam",
        "optim": "sgd",
        "compute_loss_func": loss,
    }
    once = train(tmp_path / "once", per_device_train_batch_size=12, **common)
    thrice = train(
        tmp_path / "thrice", per_device_train_batch_size=4, gradient_accumulation_steps=3, **common
    )
    assert_equal(weights(once), weights(thrice), 1e-12)
    assert logged(once) == pytest.approx(logged(thrice), rel=1e-5)


@on("bert", "lora")
def test_resume_equals_uninterrupted(
    case: Case, model: str, watched: Watched, tmp_path: Path
) -> None:
    """Law 5: bit for bit from the middle of an epoch, with accumulation and dropout."""
    whole, _, settings = watched(case, model)
    again = as_left(train(tmp_path, resume=f"{whole.folder}/checkpoint-{HALF}", **settings))
    assert_equal(whole.weights, again.weights)
    assert_same(whole.optimizer, again.optimizer)
    assert_same(whole.method, again.method)
    assert logged(whole)[HALF:] == logged(again)[-HALF:]


@pytest.fixture(scope="module")
def checkpoints_of_none(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Of the plain method on a toy, which trains once."""

    @functools.cache
    def checkpoint(model: str) -> str:
        folder = tmp_path_factory.mktemp("none")
        train(folder, model=model, max_steps=2, save_strategy="steps", save_steps=2, sam="none")
        return str(folder / "checkpoint-2")

    return checkpoint


@every_case
def test_checkpoints_go_from_method_to_none_and_back(
    case: Case,
    checkpoints_of_none: Callable[[str], str],
    watched: Watched,
    tmp_path: Path,
    caplog: Any,
) -> None:
    """A checkpoint of one loads under the other, with one warning where state is lost."""
    toy = case.toy("bert")
    whole, _, settings = watched(case, toy)
    plain = {"max_steps": HALF + 1, "sam": "none", "sam_rho": None, "sam_options": None}
    before = checkpoints_of_none(toy)
    caplog.clear()
    train(tmp_path / "a", resume=f"{whole.folder}/checkpoint-{HALF}", **{**settings, **plain})
    lost = int(case.stateful)
    assert len([r for r in caplog.records if "was saved with" in r.getMessage()]) == lost
    caplog.clear()
    train(tmp_path / "b", resume=before, max_steps=3, model=toy, **as_arguments(case))
    assert len([r for r in caplog.records if "saved with Plain" in r.getMessage()]) == 0
    said = [r for r in caplog.records if "holds no state of a SAM method" in r.getMessage()]
    assert len(said) == lost
