# SPDX-License-Identifier: Apache-2.0
"""The laws that need SAMTrainer, for every family of image classifiers, and for every norm layer.

`tests/laws` has them for every method; here a few methods go through every model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from tests.toys import assert_equal, logged, train, weights
from tests.vision.test_models import TINY, build

BATCH_NORM = ("cifar_resnet", "wide_resnet", "resnet")
OTHERS = tuple(kind for kind in TINY if kind not in BATCH_NORM)
every_family = pytest.mark.parametrize("kind", TINY)


def examples(n: int = 24, channels: int = 3) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(n, channels, 8, 8, generator=draw)
    return [{"pixel_values": image, "labels": row % 2} for row, image in enumerate(images)]


def run(folder: Path, kind: str, **arguments: Any) -> Any:
    values: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": 3, "optim": "sgd"}
    return train(folder, built=build(kind), data=examples(), **(values | arguments))


@every_family
def test_rho_zero_is_the_plain_trainer(kind: str, tmp_path: Path) -> None:
    """Law 2, with clipping and accumulation."""
    common = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    sam = run(tmp_path, kind, sam="friendly_sam", sam_rho="0.0", **common)
    plain = run(tmp_path, kind, sam="none", **common)
    assert_equal(weights(sam), weights(plain))
    assert_equal(list(sam.model.buffers()), list(plain.model.buffers()))
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())


class Unmoved(TrainerCallback):
    """Watches that the weights are where they were, whenever somebody may look at them."""

    def __init__(self) -> None:
        self.expected: list[Tensor] = []
        self.looks = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.expected = [p.detach().clone() for p in model.parameters()]

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **_: Any
    ) -> None:
        assert_equal([p.detach() for p in model.parameters()], self.expected)
        self.looks += 1


@every_family
def test_weights_return_and_the_update_is_another(kind: str, tmp_path: Path) -> None:
    """Law 1, and that there was a perturbation at all."""
    watch = Unmoved()
    sam = run(tmp_path, kind, sam="sam", sam_rho="0.5", callbacks=[watch])
    assert watch.looks == 3
    plain = run(tmp_path, kind, sam="none")
    assert not all(torch.equal(a, b) for a, b in zip(weights(sam), weights(plain), strict=True))
    assert logged(sam, "sam/perturbation_norm") == pytest.approx([0.5] * 3, rel=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_accumulation_is_invisible_without_batch_norm(kind: str, tmp_path: Path) -> None:
    """Law 3; batch norm sees the micro-batches."""
    build(kind)
    once = run(tmp_path, kind, per_device_train_batch_size=8, dtype=torch.float64)
    twice = run(tmp_path, kind, gradient_accumulation_steps=2, dtype=torch.float64)
    assert_equal(weights(once), weights(twice), 1e-7)
    assert logged(once) == pytest.approx(logged(twice), rel=1e-5)


@every_family
def test_resume_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    """Law 5, with a method that keeps state."""
    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "sam": "looksam"}
    whole = run(tmp_path, kind, **common)
    again = run(tmp_path, kind, resume=str(tmp_path / "checkpoint-2"), **common)
    assert_equal(weights(whole), weights(again))
    assert_equal(list(whole.model.buffers()), list(again.model.buffers()))


# -- norm layers ------------------------------------------------------------------------------


class Frozen(nn.BatchNorm2d):
    """Batch norm that stays in evaluation mode, as detection models have it."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "cumulative": lambda n: nn.BatchNorm2d(n, momentum=None),
    "synchronised": nn.SyncBatchNorm,
    "instance": lambda n: nn.InstanceNorm2d(n, track_running_stats=True),
    "group": lambda n: nn.GroupNorm(2, n),
    "frozen": Frozen,
    "untracked": lambda n: nn.BatchNorm2d(n, track_running_stats=False),
}
MOVING = ("batch", "cumulative", "synchronised", "instance")


class Small(nn.Module):
    """A convolution, a norm layer, a linear layer."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), norm(4), nn.Linear(4, 2)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(functional.relu(self.norm(self.first(pixel_values))).mean((2, 3)))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_move_once_per_update(norm: str, tmp_path: Path) -> None:
    """As the plain Trainer's: exactly after rho = 0, and after any rho while the weights stay."""

    def buffers(**arguments: Any) -> list[Tensor]:
        model = Small(NORMS[norm])
        common = {"max_steps": 4, "optim": "sgd", "gradient_accumulation_steps": 2}
        trainer = train(tmp_path, built=model, data=examples(), **common, **arguments)
        return [b.clone() for b in trainer.model.buffers()]

    plain = buffers(sam="none")
    assert_equal(buffers(sam="bilateral_sam", sam_rho="0.0", sam_options="rho_min=0.0"), plain)
    still = buffers(sam="none", learning_rate=0.0)
    assert_equal(buffers(sam="sam", sam_rho="0.5", learning_rate=0.0), still)
    assert_equal(buffers(sam="esam", sam_rho="0.5", learning_rate=0.0), still)
    loose = buffers(sam="sam", sam_rho="0.5", learning_rate=0.0, sam_freeze_norm_stats=False)
    same = all(torch.equal(a, b) for a, b in zip(loose, still, strict=True))
    assert same == (norm not in MOVING)
