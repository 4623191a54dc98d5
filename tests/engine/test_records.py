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
