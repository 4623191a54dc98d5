# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from benchmarks.interleave import Recorder, Stepped
from tests.toys import assert_equal, make_trainer, train, weights


class Diary(TrainerCallback):
    """Writes down when an update begins and ends."""

    def __init__(self, name: str, pages: list[str]) -> None:
        self.name = name
        self.pages = pages

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.pages.append(f"{self.name} begins")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.pages.append(f"{self.name} ends")


def test_runs_take_turns(tmp_path: Path) -> None:
    pages: list[str] = []
    runs = {}
    for name in ("none", "sam"):
        trainer = make_trainer(tmp_path, sam=name, max_steps=3, callbacks=[Diary(name, pages)])
        runs[name] = Stepped(trainer, name)
    for order in (["none", "sam"], ["sam", "none"], ["none", "sam"]):
        for name in order:
            runs[name].step()
    for run in runs.values():
        run.finish()
    turns = ["none", "sam", "sam", "none", "none", "sam"]
    assert pages == [f"{name} {what}" for name in turns for what in ("begins", "ends")]


def test_taking_turns_changes_no_result(tmp_path: Path) -> None:
    names = ("sam", "looksam", "friendly_sam")
    trainers = {name: make_trainer(tmp_path, sam=name, max_steps=4) for name in names}
    runs = {name: Stepped(trainer, name) for name, trainer in trainers.items()}
    for _ in range(4):
        for run in runs.values():
            run.step()
    for name, run in runs.items():
        run.finish()
        assert trainers[name].state.global_step == 4
        alone = train(tmp_path, sam=name, max_steps=4)
        assert_equal(weights(trainers[name]), weights(alone))


def test_samples_count_passes_and_examples(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, sam="esam", max_steps=2)
    taken = Recorder(trainer, lambda control: None).samples
    trainer.train()
    assert taken.forwards == [3, 3]  # at w, the choice, at w + eps
    assert taken.backwards == [2, 2]
    assert taken.forward_examples == [8 + 8 + 4] * 2
    assert taken.backward_examples == [8 + 4] * 2
    assert len(taken.seconds) == len(taken.cpu_seconds) == len(taken.losses) == 2
    assert all(0 < s < 60 for s in taken.seconds)


def test_a_failing_run_says_which_and_others_can_end(tmp_path: Path) -> None:
    bad, good = (make_trainer(tmp_path, sam=name, max_steps=5) for name in ("sam", "none"))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OverflowError("too much")

    bad.model.classifier.forward = fail
    runs = [Stepped(bad, "the bad one"), Stepped(good, "the good one")]
    with pytest.raises(RuntimeError, match="the bad one: the run failed: too much"):
        runs[0].step()
    runs[1].step()
    for run in runs:
        run.finish()
    assert good.state.global_step == 1


def test_a_run_that_never_started_ends(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, sam="none")
    Stepped(trainer, "none").finish()
    assert trainer.state.global_step == 0
