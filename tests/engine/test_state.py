# SPDX-License-Identifier: Apache-2.0
"""What a pass moves is found wherever it hangs, put back into the same objects, and cheaply."""

from __future__ import annotations

import itertools
import logging
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_sam.host import records
from hf_sam.host.records import Records
from hf_sam.host.state import Search
from hf_sam.landscape.replay import Replay


class Meter:
    """Counts, and has a generator."""

    def __init__(self) -> None:
        self.examples = 0
        self.draw = random.Random(1)


class Slotted:
    """Counts without a dict of attributes."""

    __slots__ = ("count", "late")

    def __init__(self) -> None:
        self.count = 0


class Moving(nn.Module):
    """Moves everything that a module can have, in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
        self.codebook = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("queue", torch.zeros(4, 3))
        self.register_buffer("mean", torch.zeros(3))
        self.rows = self.queue[:2]  # shares the buffer's memory
        self.at, self.seen, self.meter = 0, {"train": [0]}, Meter()
        self.noise, self.numbers = torch.Generator(), np.random.default_rng(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.data.mul_(0.9).add_(new.data)  # leaves the version as it is
            self.codebook.data = self.codebook + 1  # in other memory
            self.queue[self.at % 4] = x.mean(0)
            self.mean = 0.9 * self.mean + x.mean(0)
        self.register_buffer(f"late{self.at}", torch.ones(1))
        self.at += 1
        self.seen["train"].append(self.at)
        self.meter.examples += len(x)
        shift = (
            torch.rand(3, generator=self.noise) + self.numbers.random() + self.meter.draw.random()
        )
        return self.norm(self.student(x)) + self.teacher(x) + self.queue.mean(0) + shift.to(x)


def everything(model: Moving) -> dict[str, Any]:
    """The state, as values that can be compared."""
    return {
        **{name: one.clone() for name, one in model.state_dict().items()},
        "at": model.at,
        "seen": {key: list(value) for key, value in model.seen.items()},
        "examples": model.meter.examples,
        "draw": model.meter.draw.getstate(),
        "noise": model.noise.get_state(),
        "numbers": model.numbers.bit_generator.state,
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(torch.equal(one, other)) if isinstance(one, torch.Tensor) else one == other


def test_a_models_state_is_that_of_the_first_pass() -> None:
    """In the first update, in which it is found out what moves, and in later ones."""
    holder = SimpleNamespace(model=Moving(), losses={"bank": Moving()})
    state, x = Records(holder), torch.randn(5, 3)
    models = [holder.model, holder.losses["bank"]]
    objects = [(id(m.queue), id(m.rows), id(m.codebook), m.rows.data_ptr()) for m in models]
    for _ in range(3):
        replay, found, after = Replay([state]), [], []
        for _ in range(3):
            with replay():
                found.append(sum(model(x).sum() for model in models).item())
            after.append([everything(model) for model in models])
        assert found[0] == found[1] == found[2]
        assert all(same(a, b) for a, b in zip(after[0], after[1], strict=True))
        assert all(same(a, b) for a, b in zip(after[0], after[2], strict=True))
        state.settle()
    assert [m.at for m in models] == [3, 3]
    assert objects == [(id(m.queue), id(m.rows), id(m.codebook), m.rows.data_ptr()) for m in models]
    assert all(m.rows.data_ptr() == m.queue.data_ptr() for m in models)


def test_norm_statistics_alone_are_left_to_move_if_asked() -> None:
    holder = SimpleNamespace(model=Moving())
    replay = Replay([Records(holder, search=Search(norm_statistics=False))])
    for _ in range(2):
        with replay():
            holder.model(torch.randn(5, 3))
    assert int(holder.model.norm.num_batches_tracked) == 2 and holder.model.at == 1


def test_what_shares_memory_with_trained_weights_is_left_alone() -> None:
    """Or a later pass would begin by undoing the perturbation."""
    model = nn.Linear(2, 2)
    model.register_buffer("alias", model.weight.detach())
    restore = Records(SimpleNamespace(model=model)).remember()
    with torch.no_grad():
        model.weight.add_(1)
    moved = model.weight.detach().clone()
    restore()
    assert torch.equal(model.weight, moved)


def test_weights_that_are_unfrozen_are_trained_from_then_on() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    state = Records(SimpleNamespace(model=model))
    state.remember()()
    state.settle()
    state._moving |= {"model.weight", "model.bias"}
    state.remember()()
    model.requires_grad_(True)
    restore = state.remember()
    with torch.no_grad():
        model.weight.fill_(5.0)
    restore()
    assert model.weight.unique().tolist() == [5.0]


def test_objects_closures_and_slots_are_looked_into() -> None:
    total, slotted = 0, Slotted()

    def loss(history: list[int] = []) -> None:  # noqa: B006
        nonlocal total
        total += 1
        history.append(total)

    it = SimpleNamespace(meters=[Meter()], loss=loss, slotted=slotted)
    restore = Records(it).remember()
    loss()
    it.meters[0].examples += 3
    slotted.count, slotted.late = 4, 5
    restore()
    assert (total, loss.__defaults__, it.meters[0].examples) == (0, ([],), 0)
    assert slotted.count == 0 and not hasattr(slotted, "late")


def settled(it: Any) -> Records:
    """The records after a first update in which nothing moved."""
    state = Records(it)
    state.remember()()
    state.settle()
    return state


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has little count as large."""
    monkeypatch.setattr(records, "SMALL", 64)
    monkeypatch.setattr(records, "LONG", 5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("many", [list(range(8)), deque(range(8)), dict.fromkeys(range(8))])
def test_a_long_container_that_grows_is_cut_back(many: Any, caplog: Any) -> None:
    it = SimpleNamespace(many=many)
    state = settled(it)
    for _ in range(2):
        restore, before = state.remember(), list(many)
        many.update(new=1) if isinstance(many, dict) else many.extend([1, 2])
        restore()
        assert list(many) == before
        many.update({len(many): 0}) if isinstance(many, dict) else many.append(0)
    assert not caplog.records


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "value", "write"),
    [
        ("numbers", list(range(8)), lambda v: v.__setitem__(0, 9)),
        ("names", set(range(8)), lambda v: v.add(99)),
        ("table", torch.zeros(64), lambda v: v.add_(1)),
        ("array", np.zeros(64), lambda v: v.__iadd__(1)),
    ],
)
def test_something_large_that_moves_late_is_named_once_and_then_put_back(
    name: str, value: Any, write: Any, caplog: Any
) -> None:
    it = SimpleNamespace(**{name: value})
    state = settled(it)
    restore = state.remember()
    write(value)
    restore()
    assert [r.getMessage().split(",")[0] for r in caplog.records] == [f"A pass changed {name}"]
    for _ in range(2):
        restore, before = state.remember(), list(value)
        write(value)
        restore()
        assert list(value) == before
        write(value)
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("small")
def test_something_large_that_moves_in_the_first_update_is_put_back_from_the_start() -> None:
    it = SimpleNamespace(table=torch.zeros(64), array=np.zeros(64), numbers=list(range(8)))
    state = Records(it)
    for _ in range(3):
        restore = state.remember()
        before = it.table.clone(), it.array.copy(), list(it.numbers)
        it.table.data.add_(1)
        it.array += 1
        it.numbers[0] += 1
        restore()
        assert torch.equal(it.table, before[0]) and it.numbers == before[2]
        assert it.array.tolist() == before[1].tolist()
        it.table.data.add_(1)
        state.settle()


@pytest.mark.usefixtures("small")
def test_the_insides_of_a_long_container(caplog: Any) -> None:
    """They are watched together in the first update, and copied once it is known that they move."""
    it = SimpleNamespace(memory=[torch.zeros(2) for _ in range(8)])
    state = Records(it)
    restore = state.remember()
    it.memory[3].add_(1)
    restore()
    state.settle()
    assert [r.getMessage().split(",")[0] for r in caplog.records] == ["A pass changed memory"]
    restore = state.remember()
    it.memory[4].add_(1)
    restore()
    assert it.memory[4].tolist() == [0, 0]


def test_a_list_of_many_examples_costs_nothing_once_it_is_known() -> None:
    """Neither time nor memory: it is not even walked."""
    it = SimpleNamespace(kept=[{"x": torch.zeros(8)} for _ in range(5000)], big=torch.zeros(10**6))
    state = settled(it)
    plan = state._current_plan()
    assert len(plan.found.holders) == 1 and not plan.copied
    assert state._current_plan() is plan


def positions() -> dict[str, Any]:
    def endless() -> Any:
        number = 0
        while True:
            yield number * 1000
            number += 1

    loader = torch.utils.data.DataLoader(list(range(2000, 2009)), batch_size=2)
    return {
        "list": iter([10**6 + i for i in range(9)]),
        "generator": (10**6 + i for i in range(9)),
        "endless": endless(),
        "zip": zip(range(9), "abcdefghi", strict=True),
        "count": itertools.count(),
        "cycle": itertools.cycle([1, 2, 3]),
        "islice": itertools.islice(list(range(9)), 8),
        "enumerate": enumerate("abcdefgh"),
        "loader": iter(loader),
        "map": map(str, range(9)),
    }


@pytest.mark.parametrize("name", list(positions()))
def test_an_iterator_that_moves_in_a_later_pass_is_named_once(name: str, caplog: Any) -> None:
    it = SimpleNamespace(stream=positions()[name], held={"never": iter([1])})
    state = Records(it)
    for later in (False, True, True):
        replay = Replay([state])
        for first in (True, False):
            with replay():
                next(it.stream) if first or later and not caplog.records else None
        state.settle()
    (record,) = caplog.records
    assert "has drawn from stream, which" in record.getMessage()
    assert record.levelno == logging.WARNING


def test_an_exception_in_the_first_pass_puts_everything_back() -> None:
    it = SimpleNamespace(count=0)
    replay = Replay([Records(it)])
    with pytest.raises(RuntimeError), replay():
        it.count = 5
        raise RuntimeError
    assert it.count == 0
    for _ in range(2):  # and what comes next is a first pass again
        with replay():
            it.count += 1
    assert it.count == 1
