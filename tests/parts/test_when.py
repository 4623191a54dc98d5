# SPDX-License-Identifier: Apache-2.0
"""Schedules: which updates they pick, how often, and that every rank and every resume agrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_sam import RSAM, SAM, LookSAM, Plain, Progress, Vector, When
from hf_sam.methods import asks
from hf_sam.parts.gates import FIRST
from hf_sam.parts.when import adaptive, constant, learning, linear, piecewise, trigonometric
from hf_sam.texts import parse_when
from tests.toys import Bowl


def place(step: int, total: int = 10, seed: int = 0, **more: int) -> SimpleNamespace:
    """What a schedule looks at that needs no gradient."""
    return SimpleNamespace(seed=seed, progress=Progress(step, total, **more))


def run_of(total: int, warmup: int = 0, rate: Callable[[int], float] = lambda _: 1.0) -> Any:
    return [Progress(step, total, warmup, lr_ratio=rate(step)) for step in range(total)]


def picked(text: str, total: int = 10, **more: int) -> list[int]:
    schedule = parse_when(text)
    return [step for step in range(total) if schedule(place(step, total, **more))]


@pytest.mark.parametrize(
    ("text", "updates"),
    [
        ("always", list(range(10))),
        ("after:0.8", [8, 9]),
        ("after:0", list(range(10))),
        ("after:1", []),
        ("before:0.25", [0, 1, 2]),
        ("between:0.3:0.6", [3, 4, 5]),
        ("every:4", [0, 4, 8]),
        ("every:1", list(range(10))),
        ("random:constant:1", list(range(10))),
        ("random:constant:0", []),
        ("random:piecewise:0:1:0.7", [7, 8, 9]),
    ],
)
def test_picks(text: str, updates: list[int]) -> None:
    assert picked(text) == updates
    assert parse_when(text).ever(run_of(10)) == bool(updates)


def test_after_warmup() -> None:
    assert picked("after_warmup", warmup=7) == [7, 8, 9]
    assert parse_when("after_warmup").ever(run_of(10, warmup=7))
    assert not parse_when("after_warmup").ever(run_of(10, warmup=10))


RATES: dict[str, tuple[Callable[[int], float], list[int]]] = {
    "constant": (lambda t: 1.0, []),
    "constant, rounded": (lambda t: 1.0 - 1e-15, []),
    "warm-up and linear": (lambda t: min((t + 1) / 3, (10 - t) / 8), [3, 4, 5, 6, 7, 8, 9]),
    "stable, then linear": (lambda t: min((t + 1) / 3, (10 - t) / 3, 1.0), [8, 9]),
    "step": (lambda t: 1.0 if t < 6 else 0.1, [6, 7, 8, 9]),
    "unforeseen": (lambda t: math.nan, [2, 3, 4, 5, 6, 7, 8, 9]),
}


@pytest.mark.parametrize("name", RATES)
def test_decay(name: str) -> None:
    """After the warm-up, here of two updates, and below the maximum."""
    rate, updates = RATES[name]
    run, schedule = run_of(10, 2, rate), parse_when("decay")
    assert [p.step for p in run if schedule(SimpleNamespace(progress=p))] == updates
    assert schedule.ever(iter(run)) == bool(updates)
    assert (schedule.remark(iter(run)) is None) == bool(updates)


@pytest.mark.parametrize(
    ("start", "rate", "warned"),
    [
        (0.75, lambda t: 1 - t / 100, True),
        (0.2, lambda t: 1 - t / 100, False),
        (0.75, lambda t: 1.0 if t < 75 else 0.1, False),
        (0.76, lambda t: 1.0 if t < 75 else 0.1, True),
        (0.75, lambda t: 1.0, False),
        (0.75, lambda t: math.nan, False),
    ],
)
def test_a_start_inside_a_decay(start: float, rate: Callable[[int], float], warned: bool) -> None:
    """Not where the rate falls with the start itself, and not where nobody can foresee it."""
    remark = parse_when(f"after:{start}").remark(iter(run_of(100, 0, rate)))
    assert (remark is not None) == warned
    assert not warned or "SAM starts when the learning rate has fallen to" in str(remark)


def test_a_schedule_without_an_update_says_so() -> None:
    assert "SAM never starts" in str(parse_when("after:1").remark(run_of(4)))
    assert "warmup_stable_decay" in str(parse_when("decay").remark(run_of(4)))
    assert parse_when("every:2").remark(run_of(4)) is None


@pytest.mark.parametrize(
    ("text", "total", "ever"),
    [
        ("between:0.5:0.5", 10, False),
        ("between:0.95:1", 10, False),
        ("between:0.95:1", 100, True),
        ("random:linear:0:1", 1, False),
        ("random:linear:0:1", 2, True),
        ("random:linear:0:0", 100, False),
        ("random:piecewise:0:0.1:0.999", 100, False),
        ("adaptive", 1, True),
    ],
)
def test_ever(text: str, total: int, ever: bool) -> None:
    """Known before the first update, so that a run in which SAM never starts can say so."""
    assert parse_when(text).ever(run_of(total)) is ever


MEANS = [
    (constant(0.5), 0.5),
    (piecewise(0.0, 1.0, 0.5), 0.5),
    (piecewise(0.2, 0.6, 0.25), 0.2 * 0.25 + 0.6 * 0.75),
    (linear(0.0, 1.0), 0.5),
    (linear(1.0, 0.4), 0.7),
    (trigonometric(0.0, 1.0), 0.5),
    (trigonometric(0.8, 0.0), 0.4),
]


@pytest.mark.parametrize(("coin", "mean"), MEANS, ids=lambda x: str(x)[:30])
def test_mean_probability(coin: constant, mean: float) -> None:
    """The passes per update of the paper's table: one, and the mean of p."""
    n = 100_000
    assert sum(coin.probability(t / n) for t in range(n)) / n == pytest.approx(mean, abs=1e-5)


def test_the_coin_is_fair() -> None:
    n, coin = 100_000, linear(0.0, 1.0)
    assert sum(coin(place(t, n)) for t in range(n)) / n == pytest.approx(0.5, abs=5e-3)


@pytest.mark.parametrize("coin", [constant(0.3), trigonometric(0.0, 1.0)], ids=str)
def test_the_coin_falls_as_often_as_p_says_in_every_part_of_the_run(coin: constant) -> None:
    n, parts = 20_000, 4
    yes = [coin(place(t, n, seed=11)) for t in range(n)]
    for part in range(parts):
        span = range(part * n // parts, (part + 1) * n // parts)
        expected = sum(coin.probability(t / n) for t in span) / len(span)
        assert sum(yes[t] for t in span) / len(span) == pytest.approx(expected, abs=0.015)


def test_the_shapes_of_the_schedules() -> None:
    assert [linear(0.2, 0.6).probability(x) for x in (0, 0.5, 1)] == pytest.approx([0.2, 0.4, 0.6])
    quarter = (1 - math.cos(math.pi / 4)) / 2
    assert trigonometric(0.0, 1.0).probability(0.25) == pytest.approx(quarter)
    assert trigonometric(1.0, 0.0).probability(0.25) == pytest.approx(1 - quarter)


def test_the_coin_depends_on_seed_and_update_only() -> None:
    coin = constant(0.5)
    first = [coin(place(t, 1000, seed=3)) for t in range(200)]
    torch.manual_seed(99)
    assert [coin(place(t, 10**6, seed=3)) for t in range(200)] == first
    assert [coin(place(t, 1000, seed=4)) for t in range(200)] != first
    assert coin.state_dict() == {}


class Gradient:
    """A Landscape whose gradient has a given length."""

    def __init__(self, square: float, x: float) -> None:
        self.vector = Vector([torch.tensor([square], dtype=torch.float64).sqrt()])
        self.progress = Progress(int(x * 10), 10)

    def peek(self) -> Vector:
        return self.vector


class TestAdaptive:
    """AE-SAM, delta = 0.9, lambda_1 = -1, lambda_2 = 1."""

    def test_the_worked_example(self) -> None:
        gate = adaptive()
        gate.state.update(mu=1.0, variance=0.0)
        for square, mu, sigma in [
            (1.0, 1.0, 0.0),
            (2.0, 1.1, 0.2846049894),
            (4.0, 1.39, 0.8683950714),
        ]:
            gate(Gradient(square, 0.0))
            assert gate.state["mu"] == pytest.approx(mu, abs=1e-9)
            assert math.sqrt(gate.state["variance"]) == pytest.approx(sigma, abs=1e-9)

    @pytest.mark.parametrize(("x", "c"), [(0.0, 1.0), (0.5, 0.0), (1.0, -1.0)])
    def test_the_threshold_falls_over_the_run(self, x: float, c: float) -> None:
        """At mu + c sigma, here with mu = 1.39 and sigma = 0.8683950714."""
        for sign in (1, -1):
            gate = adaptive(delta=1.0)  # averages that stand still
            gate.state.update(mu=1.39, variance=0.8683950714**2)
            square = 1.39 + c * 0.8683950714 + sign * 1e-6
            assert gate(Gradient(square, x)) is (sign > 0)

    def test_it_starts_at_the_first_finite_gradient(self) -> None:
        gate = adaptive()
        assert gate(Gradient(math.inf, 0.0)) is False and gate.state == {}
        assert gate(Gradient(9.0, 0.0)) is True
        assert gate.state["mu"] == pytest.approx(9.0) and gate.state["variance"] < 1e-20
        before = dict(gate.state)
        assert gate(Gradient(math.nan, 0.0)) is False and gate.state == before

    def test_a_plain_update_costs_one_pass_and_nothing_is_computed_twice(self) -> None:
        bowl, method = Bowl(), When(adaptive(), SAM())
        seen = set()
        for step in range(12):
            bowl.passes = 0
            update = method(bowl.landscape(step, total=12))
            bowl.passes, passes = 0, bowl.passes
            same = [Plain(), SAM()][passes - 1](bowl.landscape(step, total=12))
            assert all(
                torch.equal(a, b) for a, b in zip(update, same, strict=True) if a is not None
            )
            seen.add(passes)
        assert seen == {1, 2}

    def test_it_resumes(self) -> None:
        method, again = When(adaptive(), SAM()), When(adaptive(), SAM())
        bowl = Bowl()
        for step in range(5):
            method(bowl.landscape(step, total=12))
        again.load_state_dict(method.state_dict())
        assert again.state_dict() == method.state_dict() != {}
        assert method.keeps_state and not method.local_ascent

    def test_it_needs_a_method_that_starts_at_w(self) -> None:
        with pytest.raises(ValueError, match="RSAM does not compute first"):
            When(adaptive(), RSAM())


class Loss:
    """A Landscape whose loss is given."""

    def __init__(self, loss: float) -> None:
        self.loss = torch.tensor(loss, dtype=torch.float64)

    def mean_loss(self) -> torch.Tensor:
        return self.loss


class TestLearning:
    """Plain while the mean loss is above the share of its first value."""

    def pick(self, gate: learning, losses: list[float]) -> list[bool]:
        found = []
        for at in map(Loss, losses):
            found.append(gate(at))
            gate.note(at, Vector([]))
        return found

    def test_the_worked_example(self) -> None:
        """First value 2; with decay 0.9 the mean is 1.9, 1.81 and 1.729 after losses of 1."""
        gate = learning(0.9)
        assert self.pick(gate, [1.0, 3.0] * (FIRST // 2) + [1.0] * 4) == [False] * 13 + [True]
        gate(Loss(0.0))
        assert gate.state["first"] == pytest.approx(2.0, abs=1e-12)
        assert gate.state["mean"] == pytest.approx(1.6561, abs=1e-9)

    def test_a_plateau_is_never_perturbed_and_one_that_comes_back_no_more(self) -> None:
        gate = learning(0.9)
        assert not any(self.pick(gate, [0.69, 0.70] * 50))
        assert self.pick(gate, [0.1] * 20)[-1] is True
        assert self.pick(gate, [0.69] * 40)[-1] is False

    def test_a_loss_that_is_not_finite_changes_nothing(self) -> None:
        gate = learning(0.5)
        self.pick(gate, [1.0, math.nan, math.inf])
        gate(Loss(0.0))
        assert dict(gate.state) == {"count": 1, "first": 1.0, "mean": 1.0}

    def test_it_waits_in_a_training_then_perturbs_and_costs_no_pass(self) -> None:
        bowl, method = Bowl(), When(learning(0.99), SAM(0.01))
        passes = []
        for step in range(40):
            bowl.passes = 0
            update = method(bowl.landscape(step, total=40))
            passes.append(bowl.passes)
            with torch.no_grad():
                for p, g in zip(bowl.params, update, strict=True):
                    if g is not None:
                        p -= 0.05 * g
        start = passes.index(2)
        assert FIRST <= start < 30 and passes == [1] * start + [2] * (40 - start)

    def test_it_resumes_and_leaves_local_ascent_to_the_method(self) -> None:
        method, again = When(learning(), SAM()), When(learning(), SAM())
        bowl = Bowl()
        for step in range(12):
            method(bowl.landscape(step, total=30))
        again.load_state_dict(method.state_dict())
        assert again.state_dict() == method.state_dict() != {}
        assert method.keeps_state and method.local_ascent

    def test_it_counts_as_a_schedule_that_comes(self) -> None:
        """`asks` rehearses with a loss that falls, so that a cost estimate includes SAM."""
        assert 1.2 < asks(When(learning(), SAM())).passes < 2
        assert parse_when("learning:0.8") == learning(0.8)


def test_looksam_under_a_schedule_begins_with_a_refresh() -> None:
    bowl, method = Bowl(), When(parse_when("between:0.5:1"), LookSAM(k=3))
    passes = []
    for step in range(12):
        bowl.passes = 0
        method(bowl.landscape(step, total=12))
        passes.append(bowl.passes)
    assert passes == [1] * 6 + [2, 1, 1, 2, 1, 1]
