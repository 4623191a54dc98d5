# SPDX-License-Identifier: Apache-2.0
"""What an object notes about its doings is put back, into the same objects."""

from __future__ import annotations

from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam.host.records import Records
from hf_sam.landscape.replay import Replay


def noted() -> SimpleNamespace:
    """An object with records of every kind, and things that are none."""
    return SimpleNamespace(
        count=1,
        metrics={"train": defaultdict(list, entropy=[0.5]), "eval": {}},
        components={"train": {"steps": torch.tensor(3)}},
        last=deque([1, 2, 3], maxlen=3),
        seen={"a"},
        table=np.zeros(2),
        pair=([1], torch.ones(2)),
        best=None,
        weight=torch.nn.Parameter(torch.ones(2)),
        model=torch.nn.Linear(1, 1),
        data=[1, 2],
    )


def work(it: Any) -> None:
    """Writes to all of them."""
    it.count += 1
    it.metrics["train"]["entropy"].append(0.7)
    it.metrics["train"]["accuracy"].append(0.1)
    it.metrics["eval"] = {"loss": 1.0}
    it.components["train"]["steps"] += 1
    it.components["train"]["loss"] = torch.tensor(2.0)
    it.last.append(4)
    it.seen |= {"b"}
    it.seen.discard("a")
    it.table += 1
    it.pair[0].clear()
    it.pair[1].mul_(2)
    it.best, it.fresh = 0.3, "new"


def test_everything_is_put_back_where_it_was() -> None:
    it, same = noted(), noted()
    inner = it.metrics["train"], it.metrics["train"]["entropy"], it.components["train"]["steps"]
    restore = Records(it).remember()
    for _ in range(2):  # as often as one likes
        work(it)
        restore()
        assert inner[0] is it.metrics["train"] and inner[1] is it.metrics["train"]["entropy"]
        assert inner[2] is it.components["train"]["steps"] and int(inner[2]) == 3
        assert it.metrics == same.metrics and it.metrics["train"].default_factory is list
        assert list(it.last) == [1, 2, 3] and it.last.maxlen == 3
        assert (it.count, it.seen, it.best, hasattr(it, "fresh")) == (1, {"a"}, None, False)
        assert it.table.tolist() == [0, 0] and it.pair[0] == [1] and it.pair[1].tolist() == [1, 1]
        assert list(it.components["train"]) == ["steps"]


def test_what_is_given_or_trained_is_left_alone() -> None:
    """Training data and parameters are no records; nor is what they hold copied."""
    it = noted()
    restore = Records(it, but={"data"}).remember()
    it.data.append(3)
    with torch.no_grad():
        it.weight.mul_(2)
        it.model.weight.fill_(7)
    restore()
    assert it.data == [1, 2, 3]
    assert it.weight.tolist() == [2, 2] and it.model.weight.tolist() == [[7]]


def test_a_record_that_holds_itself() -> None:
    it = SimpleNamespace(tree={"leaf": 1})
    it.tree["up"] = it.tree
    restore = Records(it).remember()
    it.tree["leaf"] = 2
    restore()
    assert it.tree["leaf"] == 1 and it.tree["up"] is it.tree


def test_later_passes_begin_with_the_records_of_the_first() -> None:
    """A loss may depend on what it has counted: it is then the same function in every pass."""
    it = SimpleNamespace(count=0)
    replay = Replay([Records(it)])

    def update() -> list[int]:
        found = []
        for _ in range(3):
            with replay():
                found.append(it.count)
                it.count += 2
        return found

    assert update() == [0, 0, 0] and it.count == 2
    replay = replay.fresh()
    assert update() == [2, 2, 2] and it.count == 4
    with pytest.raises(RuntimeError), replay():
        it.count = 99
        raise RuntimeError
    assert it.count == 4


class Late(torch.nn.Module):
    """Has containers that do not move at first."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.names, self.keys = torch.nn.Dropout(0.1), {1}, {"a": True}
        self.register_buffer("mean", torch.zeros(3))
        self.kept: list[Any] = []


def test_what_moves_late_is_put_back_in_the_update_in_which_it_first_does() -> None:
    """One look at all containers that have never moved finds it, and it is looked at from then."""
    it = SimpleNamespace(model=Late())
    model, state = it.model, Records(it)
    for _ in range(2):
        state.remember()()
        state.settle()
    quiet = state._current_plan().quiet
    assert len(quiet.all) > 5 and not quiet.moved()
    kept, mean = model.kept, model.mean
    for _ in range(2):
        restore = state.remember()
        model.drop.p, model.drop.training, model.mean = 0.7, False, torch.ones(3)
        model.kept = []  # an equal one, which a look lets pass until it is written to
        model.kept.append(torch.ones(2))
        model.keys["b"] = model.keys.pop("a")
        model.names.add(2)
        restore()
        assert (model.drop.p, model.drop.training, model.keys) == (0.1, True, {"a": True})
        assert model.mean is mean and model.kept == [] and model.names == {1}
    assert model.kept is kept
    assert len(state._current_plan().quiet.all) < len(quiet.all)


def test_frozen_weights_in_other_memory_are_given_theirs_back() -> None:
    it = SimpleNamespace(weight=torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    state, place = Records(it), it.weight.data_ptr()
    state.remember()()
    state.settle()
    restore = state.remember()
    it.weight.data = torch.ones(3)
    restore()
    assert it.weight.data_ptr() == place and it.weight.tolist() == [0, 0, 0]
    state.settle()
    assert state._plan is not None and not state._plan.watched._storages
