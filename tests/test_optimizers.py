# SPDX-License-Identifier: Apache-2.0
"""Every optimizer of Trainer: at rho = 0 it gets from SAM what the plain Trainer gives it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.toys import assert_equal, bert, examples, logged, make_trainer, train, weights

REFUSED = [
    name.value for name in OptimizerNames if "lomo" in name.value or "layerwise" in name.value
]
ALWAYS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad"}
OTHERS = [name.value for name in OptimizerNames if name.value not in {*ALWAYS, *REFUSED}]
FOREIGN = pytest.mark.filterwarnings("ignore")  # other packages' warnings are theirs
NAMES = [*sorted(ALWAYS), *(pytest.param(name, marks=FOREIGN) for name in OTHERS)]
BITSANDBYTES = ("adamw_bnb", "adamw_8bit", "ademamix", "lion", "rmsprop_bnb")
LOW_RANK = {"optim_target_modules": ["query", "value"], "optim_args": "rank=4"}


def moments(trainer: Trainer) -> list[Tensor]:
    """Return copies of all tensors of the optimizer's state."""
    return [t.clone() for t in tensors_in(dict(trainer.optimizer.state))]


def tensors_in(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    for value in state.values() if isinstance(state, dict) else ():
        yield from tensors_in(value)


PACKAGES = {
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "apollo": "apollo_torch",
    "galore": "galore_torch",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
}
"""What `make test-optim` installs, by the beginning of the names that need it."""

ELSEWHERE = {
    "adamw_torch_xla": "torch_xla, which is for TPUs",
    "adamw_torch_npu": "torch_npu, which is for Ascend devices",
    "adamw_anyprecision": "torchdistx, which no registry has",
    "galore_adamw_8bit": "a GPU",
    "paged": "a GPU",
}
"""What the others need, so that nothing but them may be skipped."""


def skip_without(name: str) -> None:
    """Skip what cannot run here; whatever else goes wrong is a failure."""
    for start, needed in ELSEWHERE.items():
        if name.startswith(start) and not (needed == "a GPU" and torch.cuda.is_available()):
            pytest.skip(f"optim={name} needs {needed}")
    package = next((p for start, p in PACKAGES.items() if name.startswith(start)), None)
    if package is None and name not in ALWAYS:
        package = "bitsandbytes"
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"optim={name} needs {package}: make test-optim installs it")


def test_every_optimizer_is_known() -> None:
    """A new one of Trainer's must say what it needs, before it may be skipped."""
    named = (*PACKAGES, *ELSEWHERE, *BITSANDBYTES)
    assert {name for name in OTHERS if not name.startswith(named)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_rho_zero_is_the_plain_trainer(tmp_path: Path, name: str) -> None:
    """12 updates, bit for bit: weights, the optimizer's state, and what is logged."""
    skip_without(name)
    settings: dict[str, Any] = {"max_steps": 12, "dropout": 0.1, "weight_decay": 0.01}
    settings |= LOW_RANK if name.startswith(("galore", "apollo")) else {}
    plain = train(tmp_path, cls=Trainer, optim=name, **settings)
    sam = train(tmp_path, optim=name, sam_rho=0, **settings)
    assert_equal(weights(sam), weights(plain))
    mine, theirs = moments(sam), moments(plain)
    assert len(theirs) > 0 or name in ("sgd", "grokadamw")  # without momentum; kept elsewhere
    assert_equal(mine, theirs)
    for key in ("loss", "grad_norm", "learning_rate"):
        assert logged(sam, key) == logged(plain, key)
    assert not torch.equal(weights(plain)[0], weights(make_trainer(tmp_path))[0]), "it trained"


@pytest.mark.parametrize("name", sorted(ALWAYS))
def test_the_gradient_that_arrives_is_the_perturbed_one(tmp_path: Path, name: str) -> None:
    """With rho > 0 each optimizer takes another path, and its step sees clipped gradients."""
    settings = {"optim": name, "max_steps": 3, "max_grad_norm": 0.01}
    plain = train(tmp_path, sam="none", **settings)
    sam = make_trainer(tmp_path, sam_rho=0.2, **settings)
    seen: list[float] = []
    sam.create_optimizer()
    step = sam.optimizer.step

    def look(*args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for p in sam.model.parameters() if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(grads)))
        return step(*args, **kwargs)

    sam.optimizer.step = look
    sam.train()
    assert seen == pytest.approx([0.01] * 3, rel=1e-3)
    assert logged(sam)[0] == logged(plain)[0]
    assert any(not torch.equal(a, b) for a, b in zip(weights(sam), weights(plain), strict=True))


@pytest.mark.parametrize("kind", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_evaluates_at_its_average(tmp_path: Path, kind: str) -> None:
    """Its switch to other weights is made before the passes, and undone for evaluation."""
    skip_without(kind)

    class Evaluate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate = state.global_step % 3 == 0

    def run(cls: type[Trainer], **more: Any) -> Trainer:
        callbacks = [Evaluate()]
        trainer = make_trainer(
            tmp_path, cls=cls, optim=kind, max_steps=6, callbacks=callbacks, **more
        )
        trainer.eval_dataset = examples("bert", 16, seed=9)
        trainer.train()
        return trainer

    plain, zero, sam = run(Trainer), run(SAMTrainer, sam_rho=0), run(SAMTrainer, sam_rho=0.2)
    assert len(logged(plain, "eval_loss")) == 2
    assert logged(zero, "eval_loss") == logged(plain, "eval_loss") != logged(sam, "eval_loss")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_step_inside_backward_are_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    """When the trainer is built, whether or not their package is installed."""
    with pytest.raises(ValueError, match=f"optim='{name}' does not work with SAM.*inside backward"):
        make_trainer(tmp_path, optim=name)


class Wrapper(torch.optim.SGD):
    """Looks like the SAM optimizers of other packages."""

    def first_step(self) -> None:
        """Step aside."""


class NeedsClosure(torch.optim.SGD):
    """Evaluates the loss itself."""

    def step(self, closure: Callable[[], Any]) -> Any:
        """Step."""
        return super().step(closure)


class FakeLomo(torch.optim.SGD):
    """Has the name of an optimizer that steps inside backward."""


def build(folder: Path, kind: Callable[..., torch.optim.Optimizer], wrap: bool) -> SAMTrainer:
    model = bert()
    optimizer = kind(model.parameters(), lr=0.1)
    if wrap:
        outer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        outer.optimizer = optimizer  # type: ignore[attr-defined]
        optimizer = outer
    args = SAMTrainingArguments(str(folder), use_cpu=True, report_to="none")
    data = examples("bert")
    return SAMTrainer(model=model, args=args, train_dataset=data, optimizers=(optimizer, None))


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (torch.optim.LBFGS, "LBFGS does not work with SAM.*closure"),
        (NeedsClosure, "NeedsClosure does not work with SAM.*closure"),
        (Wrapper, "Wrapper does not work with SAM.*a SAM of its own"),
        (FakeLomo, "FakeLomo does not work with SAM.*inside backward"),
    ],
)
def test_optimizer_objects_are_refused(
    tmp_path: Path, kind: Callable[..., torch.optim.Optimizer], reason: str, wrap: bool
) -> None:
    with pytest.raises(ValueError, match=reason):
        build(tmp_path, kind, wrap)


def test_an_optimizer_class_is_checked_before_the_first_step(tmp_path: Path) -> None:
    """One that only `create_optimizer` makes is looked at when training is prepared."""

    class Own(SAMTrainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.LBFGS(self.model.parameters())
            return self.optimizer

    args = SAMTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = Own(model=bert(), args=args, train_dataset=examples("bert"))
    before = weights(trainer)
    with pytest.raises(ValueError, match="LBFGS does not work with SAM"):
        trainer.train()
    assert_equal(weights(trainer), before)


TORCH = ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
TORCH += ["Rprop", "SGD"]


@pytest.mark.parametrize("name", TORCH)
def test_torch_optimizers_given_as_objects(tmp_path: Path, name: str) -> None:
    """Rho = 0 is the plain Trainer with these, too."""
    found = []
    for cls, kind, more in (
        (Trainer, TrainingArguments, {}),
        (SAMTrainer, SAMTrainingArguments, {"sam_rho": 0.0}),
    ):
        model = bert(0.1)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
        args = kind(
            str(tmp_path),
            max_steps=4,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
            **more,
        )
        data = examples("bert")
        trainer = cls(model=model, args=args, train_dataset=data, optimizers=(optimizer, None))
        trainer.train()
        found.append(weights(trainer))
    assert_equal(found[0], found[1])
