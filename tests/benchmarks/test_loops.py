# SPDX-License-Identifier: Apache-2.0
"""What our methods are compared with does the same work, and the same update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.interleave import Stepped, take_turns
from benchmarks.loops import RIVALS, Loop, installed, rival
from benchmarks.memory import loop_peaks
from benchmarks.problem import Batches, Problem, Training, drawn
from benchmarks.rows import parse_rows
from tests.toys import assert_equal, bert, weights

ROWS = {row.text: row for row in parse_rows("none,sam,friendly_sam")}
UPDATES = 4


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """A tiny model without dropout, in batches of 4."""
    draw = torch.Generator().manual_seed(0)
    made = [
        {
            "input_ids": torch.randint(1, 50, (4, 8), generator=draw),
            "labels": torch.randint(0, 2, (4,), generator=draw),
        }
        for _ in range(2)
    ]
    training = Training(UPDATES, 4, learning_rate=1e-2, use_cpu=True)
    numbers = list(range(training.examples(UPDATES)))
    return Problem(bert().to(torch.float64), numbers, Batches(made, 4), training, str(tmp_path))


@pytest.mark.parametrize("name", ["loop:sam", "peer:SAM", "peer:FriendlySAM"])
def test_a_rival_makes_our_updates(name: str, problem: Problem) -> None:
    """In turns with ours, from the same weights and batches to the same weights."""
    if not installed(name):
        pytest.skip("pytorch-optimizer is not installed")
    ours = rival(name).beside
    trainer = problem.trainer(ROWS[ours], UPDATES)
    runs: dict[str, Any] = {ours: Stepped(trainer, ours), name: Loop(problem, name, UPDATES)}
    after: list[int] = []
    take_turns(runs, UPDATES, 1, after.append)
    assert after == [1, 2, 3, 4]
    loop = runs[name]
    assert_equal(weights(trainer), [p.detach() for p in loop.model.parameters()], 1e-6)
    before = [p.detach() for p in problem.model.parameters()]
    assert max((a - b).abs().max() for a, b in zip(weights(trainer), before, strict=True)) > 1e-2
    mine, theirs = runs[ours].recorder.samples, loop.samples
    assert theirs.losses == pytest.approx(mine.losses, abs=1e-6)
    for count in ("forwards", "backwards", "forward_examples", "backward_examples"):
        assert getattr(theirs, count) == getattr(mine, count)
    for taken in (mine, theirs):
        assert all(0 < p < s for p, s in zip(taken.pass_seconds, taken.seconds, strict=True))
    pairs = zip(mine.pass_seconds, mine.step_seconds, mine.seconds, strict=True)
    assert all(inside < step < whole for inside, step, whole in pairs)


def test_memory_of_a_loop(problem: Problem) -> None:
    peaks, samples = loop_peaks(Loop(problem, "loop:sam", 2), 2)
    assert len(peaks) == len(samples.seconds) == 2
    assert peaks[1] > 3 * problem.parameters["parameter_bytes"]  # gradients and AdamW's averages


def test_unknown_rivals_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'peer:SAM'"):
        rival("peer:SAMM")
    assert {r.beside for r in RIVALS.values()} <= {"sam", "looksam", "friendly_sam"}


def test_frozen_weights_are_shared_by_copies(tmp_path: Path) -> None:
    problem = drawn("bert-1m", 8, Training(1, 2, use_cpu=True), 1, str(tmp_path))
    frozen = problem.model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    copy = problem.copy_of_model()
    assert copy.bert.embeddings.word_embeddings.weight is frozen
    pooler = problem.model.bert.pooler.dense.weight
    assert copy.bert.pooler.dense.weight is not pooler
    assert torch.equal(copy.bert.pooler.dense.weight, pooler)
    size = problem.parameters
    assert size["model_bytes"] - size["parameter_bytes"] > 4 * frozen.numel() - 1
