# SPDX-License-Identifier: Apache-2.0
"""`torch_compile=True`: the same training as without, and graphs for the first updates only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback

from hf_sam import SAMTrainer
from tests.cases import CASES, Case
from tests.toys import assert_equal, make_trainer, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*TF32:UserWarning",  # inductor's, about a GPU's own settings
    "ignore::DeprecationWarning",  # of what a backend imports
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # dynamo's, at a graph break
)
UPDATES = 5


@pytest.fixture(autouse=True)
def _compiled_by_nobody_else() -> Iterator[None]:
    """Other tests neither share graphs nor inherit what torch_compile writes to the environment."""
    torch._dynamo.reset()
    counters.clear()
    with mock.patch.dict(os.environ):
        yield
    torch._dynamo.reset()


class Small(nn.Module):
    """A classifier with dropout and batch norm, which compiles quickly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(self.drop(self.norm(self.first(x)).relu()))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(n: int = 40) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(4)
    inputs, labels = torch.randn(n, 6, generator=draw), torch.randint(3, (n,), generator=draw)
    return [{"x": x, "labels": int(y)} for x, y in zip(inputs, labels, strict=True)]


class Graphs(TrainerCallback):
    """How many graphs there are after each update."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.append(counters["stats"]["unique_graphs"])


def run(folder: Path, backend: str | None, cls: type = SAMTrainer, **settings: Any) -> Any:
    """A trained trainer, whose `buffers` and `graphs` are what one wants to know of it."""
    torch._dynamo.reset()
    counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": backend} if backend else {}
    given = {"max_steps": UPDATES, "built": Small(), "data": data()} | compiled | settings
    graphs = Graphs()
    trainer = make_trainer(folder, cls=cls, callbacks=[graphs], **given)
    trainer.train()
    trainer.buffers, trainer.graphs = list(trainer.model.buffers()), graphs.seen
    return trainer


def adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(Small(), LoraConfig(r=2, target_modules=["first", "last"]))


def choice(case: Case) -> dict[str, Any]:
    built = {"built": adapted()} if case.adapters else {}
    return {"sam": case.key, "sam_options": case.options or None, **built}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_method_compiles_in_its_first_updates_only(case: Case, tmp_path: Path) -> None:
    """Passes at other weights take no graph of their own; new kinds of pass take one each.

    These are batches of another size, forwards without a graph, and the evaluation mode of drawn
    examples. Whatever is compiled, the weights and running statistics are those of eager.
    """
    eager = run(tmp_path, None, **choice(case))
    compiled = run(tmp_path, "aot_eager", **choice(case))
    late = case.key in ("late_sam", "ss_sam")
    assert not eager.graphs[-1]
    most = 8 if case.layer_p else 4  # noise is drawn between two graphs
    assert compiled.graphs[-1] == compiled.graphs[1] <= most, compiled.graphs
    assert not late or compiled.graphs[-1] <= 2
    assert_equal(weights(compiled), weights(eager), 1e-6)
    assert_equal(compiled.buffers, eager.buffers, 1e-6)


def test_rho_zero_is_the_plain_compiled_trainer(tmp_path: Path) -> None:
    """Bit for bit, and SAM compiles nothing more than the plain Trainer."""
    plain = run(tmp_path, "aot_eager", cls=Trainer)
    ours = run(tmp_path, "aot_eager", sam_rho=0.0)
    assert_equal(weights(ours), weights(plain))
    assert_equal(ours.buffers, plain.buffers)
    assert ours.graphs[-1] == plain.graphs[-1] >= 1


@pytest.mark.slow
def test_inductor(tmp_path: Path, monkeypatch: Any) -> None:
    """The default backend: rho = 0 bit for bit, and SAM as in eager, to rounding.

    Plain gradient descent for the latter: Adam makes steps of full length out of rounding errors
    where the gradient is zero, as that of a bias before batch norm is.
    """
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("inductor needs a C++ compiler for the CPU; aot_eager is tested without one")
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    plain = run(tmp_path, "inductor", cls=Trainer)
    ours = run(tmp_path, "inductor", sam_rho=0.0)
    assert_equal(weights(ours), weights(plain))
    assert_equal(ours.buffers, plain.buffers)
    assert ours.graphs[-1] == plain.graphs[-1] >= 1
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)  # eager's dropout masks
    eager = run(tmp_path, None, optim="sgd", sam_rho=0.5)
    compiled = run(tmp_path, "inductor", optim="sgd", sam_rho=0.5)
    assert_equal(weights(compiled), weights(eager), 1e-6)
    assert_equal(compiled.buffers, eager.buffers, 1e-6)
    assert compiled.graphs[-1] == compiled.graphs[1]
