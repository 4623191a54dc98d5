# SPDX-License-Identifier: Apache-2.0
"""`AveragingCallback`: evaluations and the end see the average, the training does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_sam.callbacks import AveragingCallback
from tests.toys import assert_equal, examples, logged, train

DECAY = 0.7


class Kept(TrainerCallback):
    """Keeps the weights that the optimizer has after each update, and those of each evaluation."""

    def __init__(self) -> None:
        self.trained: list[list[torch.Tensor]] = []
        self.evaluated: list[list[torch.Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.trained.append([p.detach().clone() for p in model.parameters()])

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.evaluated.append([p.detach().clone() for p in model.parameters()])


def test_evaluations_and_the_end_see_the_average(tmp_path: Path) -> None:
    """Against the sum by hand; losses and checkpoints are those of the training without it."""
    common = {"max_steps": 4, "sam": "none", "save_strategy": "steps", "save_steps": 2}
    common |= {"eval_strategy": "steps", "eval_steps": 2, "eval_data": examples("bert", 8)}
    kept = Kept()
    plain = train(tmp_path / "plain", callbacks=[kept], **common)
    seen = Kept()
    mean = train(tmp_path / "mean", callbacks=[seen, AveragingCallback(DECAY)], **common)
    ends = [*kept.trained[1:], [p.detach() for p in plain.model.parameters()]]
    average = ends[0]
    by_hand = [average]
    for weights in ends[1:]:
        average = [DECAY * a + (1 - DECAY) * w for a, w in zip(average, weights, strict=True)]
        by_hand.append(average)
    assert_equal(seen.evaluated[0], by_hand[1], 1e-6)
    assert_equal(seen.evaluated[1], by_hand[3], 1e-6)
    assert_equal([p.detach() for p in mean.model.parameters()], by_hand[3], 1e-6)
    assert logged(mean) == logged(plain)
    for a, b in zip(seen.trained, kept.trained, strict=True):
        assert_equal(a, b)
    files = [tmp_path / name / "checkpoint-2" / "model.safetensors" for name in ("plain", "mean")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_that_is_no_share(decay: float) -> None:
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        AveragingCallback(decay)
