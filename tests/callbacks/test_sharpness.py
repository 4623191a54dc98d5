# SPDX-License-Identifier: Apache-2.0
"""`SharpnessCallback`: measures over a training, and leaves no trace in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_sam.callbacks import SharpnessCallback
from hf_sam.sharpness import sharpness
from tests.toys import assert_equal, examples, logged, train, weights


@pytest.mark.parametrize("cls", [None, Trainer])
def test_every_so_many_updates_in_any_trainer(cls: Any, tmp_path: Path) -> None:
    """The training is that without the callback, dropout and all."""
    common = {"dropout": 0.3, "max_steps": 6} | ({} if cls is None else {"cls": cls})
    callback = SharpnessCallback(every=2, examples=12, rho=0.1, steps=2)
    watched = train(tmp_path / "watched", callbacks=[callback], **common)
    plain = train(tmp_path / "plain", **common)
    assert_equal(weights(watched), weights(plain))
    entries = [e for e in watched.state.log_history if "sharpness" in e]
    assert [e["step"] for e in entries] == [2, 4, 6]
    assert logged(watched) == logged(plain)
    batches = [watched.data_collator(examples("bert")[i : i + 8]) for i in (0, 8)]
    batches[1] = {k: v[:4] for k, v in batches[1].items()}
    last = sharpness(watched.model, batches, 0.1, steps=2).sharpness
    assert entries[-1]["sharpness"] == pytest.approx(last, rel=1e-5)


def test_at_each_evaluation(tmp_path: Path) -> None:
    trainer = train(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        eval_data=examples("bert", 8),
        callbacks=[SharpnessCallback(examples=8)],
    )
    assert len(logged(trainer, "sharpness")) == 2


def test_what_cannot_be_measured_is_said_once(tmp_path: Path, caplog: Any) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(examples("bert"))

    trainer = train(tmp_path, max_steps=3, data=Stream(), callbacks=[SharpnessCallback(every=1)])
    assert trainer.state.global_step == 3 and logged(trainer, "sharpness") == []
    assert sum("sharpness cannot be measured" in m for m in caplog.messages) == 1


@pytest.mark.parametrize("arguments", [{"every": 0}, {"examples": -1}, {"every": 1.5}])
def test_numbers_that_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give a whole number from 1"):
        SharpnessCallback(**arguments)
