# SPDX-License-Identifier: Apache-2.0
"""Whatever is put together: five updates on a bare Landscape return, are finite, cost what they
should, and are a slow computation in float64.

Hypothesis draws the schedule, direction, radius, mask, combination and groups, the numbers of
examples and their micro-batches, the shapes, dtype and memory of the weights, which of them are
perturbed, and which have no gradient in an update or in its second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_sam import Composed, Landscape, Method, PerGroup, Progress, When
from hf_sam.parts import (
    adaptive,
    adaptive_radius,
    after,
    always,
    before,
    chain,
    constant,
    dynamic_mask,
    every,
    fisher_mask,
    layer_radius,
    minus_average,
    radius,
    rescaled,
)
from tests.references.ss_sam import coin

UPDATES, TOTAL, SEED, RATE = 5, 8, 11, 0.05
SHAPES = [(3, 4), (5,), (1,), (2, 2, 3), (6, 1)]
Array = np.ndarray

SCHEDULES: dict[str, tuple[Callable[[], Any], Callable[[int], bool] | None]] = {
    "always": (always, lambda t: True),
    "after": (lambda: after(0.25), lambda t: t >= 2),
    "before": (lambda: before(0.25), lambda t: t < 2),
    "every": (lambda: every(2), lambda t: t % 2 == 0),
    "random": (lambda: constant(0.5), lambda t: coin(SEED, t) < 0.5),
    "adaptive": (adaptive, None),
}
RADII: dict[str, Callable[[], Any]] = {
    "radius": lambda: radius(0.1),
    "adaptive": lambda: adaptive_radius(0.3),
    "unit": lambda: layer_radius(0.05, "unit"),
    "trust": lambda: layer_radius(0.05, "trust"),
}
MASKS: dict[str, Callable[[], Any] | None] = {
    "none": None,
    "fisher": lambda: fisher_mask(0.5, 2, 3),
    "dynamic": lambda: dynamic_mask(0.5, 2),
}


@dataclass(frozen=True)
class Setup:
    """What is put together.

    Attributes:
        sizes: examples of each micro-batch.
        shapes: of the weights.
        overlapping: whether the first two share some of their memory.
        where: which may be perturbed.
        missing: per update, which have no gradient.
        lost: per update, one that has none in the second pass, or None.
        groups: per update, if it is cut into groups.
    """

    schedule: str
    friendly: bool
    far: str
    mask: str
    rescales: bool
    groups: int | None
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    overlapping: bool
    dtype: torch.dtype
    where: tuple[bool, ...]
    missing: tuple[tuple[bool, ...], ...]
    lost: tuple[int | None, ...]

    def method(self) -> Method:
        """The method of these parts; new ones, for they have state."""
        parts = [minus_average() if self.friendly else None, RADII[self.far]()]
        mask = MASKS[self.mask]
        parts += [mask() if mask else None]
        more = {"combine": rescaled()} if self.rescales else {}
        method: Method = Composed(chain(*(p for p in parts if p is not None)), **more)
        if self.groups is not None:
            method = PerGroup(self.groups, method)
        return When(SCHEDULES[self.schedule][0](), method)


@st.composite
def setups(draw: Any) -> Setup:
    """Draw what may be put together; a mask has no slow computation here, `references/` has."""
    count = draw(st.integers(1, 4))
    stateless = draw(st.booleans())
    groups = draw(st.none() | st.integers(1, 3)) if stateless else None
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: sum(s) >= 3))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    rarely = st.lists(st.sampled_from([False] * 4 + [True]), min_size=count, max_size=count)
    lost = st.sampled_from([None, None, *range(count)]) if groups is None else st.none()
    schedules = [name for name in SCHEDULES if name != "adaptive" or groups is None]
    dtypes = [torch.float64, torch.float64, torch.float32, torch.bfloat16]
    return Setup(
        schedule=draw(st.sampled_from(schedules)),
        friendly=not stateless and draw(st.booleans()),
        far=draw(st.sampled_from(sorted(RADII))),
        mask="none" if stateless else draw(st.sampled_from(sorted(MASKS))),
        rescales=draw(st.booleans()),
        groups=groups,
        sizes=tuple(sizes),
        shapes=tuple(draw(st.sampled_from(SHAPES)) for _ in range(count)),
        overlapping=count > 1 and draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        where=tuple(draw(flags)),
        missing=tuple(tuple(draw(rarely)) for _ in range(UPDATES)),
        lost=tuple(draw(lost) for _ in range(UPDATES)),
    )


class Memory:
    """The numbers behind the weights, and which of them each weight shows.

    Attributes:
        places: per weight, the positions of its elements.
        start: the numbers, in float64.
    """

    def __init__(self, setup: Setup) -> None:
        sizes = [math.prod(shape) for shape in setup.shapes]
        begins = np.cumsum([0, *sizes[:-1]])
        if setup.overlapping:  # the second begins in the middle of the first
            begins = np.where(np.arange(len(sizes)) > 0, begins - sizes[0] + sizes[0] // 2, begins)
        self.places = [np.arange(b, b + n) for b, n in zip(begins, sizes, strict=True)]
        draw = np.random.default_rng(3)
        self.start = draw.normal(size=max(int(p[-1]) + 1 for p in self.places))

    def weights(self, setup: Setup) -> list[nn.Parameter]:
        whole = torch.tensor(self.start, dtype=setup.dtype)
        views = (
            whole[int(p[0]) : int(p[-1]) + 1].view(s)
            for p, s in zip(self.places, setup.shapes, strict=True)
        )
        return [nn.Parameter(view) for view in views]


class Loss:
    """The square of a sum of tanh, one for each weight, of which each example has its own."""

    def __init__(self, setup: Setup, step: int) -> None:
        draw = np.random.default_rng(100 + step)
        rows = sum(setup.sizes)
        counts = [math.prod(shape) for shape in setup.shapes]
        self.inputs = [draw.normal(size=(rows, n)) / n**0.5 for n in counts]
        self.targets = draw.normal(size=rows)

    def of(self, weights: Sequence[Tensor], rows: Tensor, without: set[int]) -> Tensor:
        """The losses of some examples, by autograd."""
        dtype = weights[0].dtype
        out = -torch.tensor(self.targets)[rows].to(dtype)
        for i, (x, w) in enumerate(zip(self.inputs, weights, strict=True)):
            if i not in without:
                out = out + torch.tanh(torch.tensor(x)[rows].to(dtype) @ w.flatten())
        return out.square()

    def gradients(self, weights: list[Array], rows: Array, without: set[int]) -> list[Array]:
        """The gradients of their mean, by hand; zeros for weights that are left out."""
        heights = [np.tanh(x[rows] @ w) for x, w in zip(self.inputs, weights, strict=True)]
        out = -self.targets[rows] + sum(h for i, h in enumerate(heights) if i not in without)
        return [
            np.zeros_like(w) if i in without else (2 * out * (1 - h * h)) @ x[rows] / len(rows)
            for i, (x, w, h) in enumerate(zip(self.inputs, weights, heights, strict=True))
        ]


def length(vectors: Sequence[Array]) -> float:
    return math.sqrt(sum(float(v @ v) for v in vectors))


class Slow:
    """The same five updates on one flat vector in float64, from the formulas."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.memory = setup, Memory(setup)
        self.average: list[Array] | None = None
        self.gate: tuple[float, float] | None = None

    def run(self) -> tuple[Array, list[bool]]:
        """Return the numbers at the end, and which updates were perturbed."""
        flat, perturbed = self.memory.start.copy(), []
        for step in range(UPDATES):
            update, moved = self.update(flat, step)
            self.add(flat, [-RATE * u for u in update])
            perturbed.append(moved)
        return flat, perturbed

    def add(self, flat: Array, vectors: Sequence[Array]) -> None:
        """Add to the numbers that each weight shows, twice to what two of them do."""
        for places, v in zip(self.memory.places, vectors, strict=True):
            flat[places] += v

    def shown(self, flat: Array) -> list[Array]:
        return [flat[places].copy() for places in self.memory.places]

    def update(self, flat: Array, step: int) -> tuple[list[Array], bool]:
        setup, loss = self.setup, Loss(self.setup, step)
        without = {i for i, no in enumerate(setup.missing[step]) if no}
        rows = np.arange(sum(setup.sizes))
        here = loss.gradients(self.shown(flat), rows, without)
        if not self.picks(step, here):
            return here, False
        found, count = [], setup.groups or 1
        ends = [len(rows) * g // count for g in range(count + 1)]
        for group in (rows[a:b] for a, b in zip(ends, ends[1:], strict=False)):
            here = loss.gradients(self.shown(flat), group, without)
            there_flat = flat.copy()
            self.add(there_flat, self.step(here, without, self.shown(flat)))
            lost = without | ({setup.lost[step]} - {None})
            there = loss.gradients(self.shown(there_flat), group, lost)  # type: ignore[arg-type]
            # A weight without gradient at w has no update, though another may share its memory.
            there = [np.zeros_like(v) if i in without else v for i, v in enumerate(there)]
            scale = length(here) / (length(there) + 1e-12) if setup.rescales else 1.0
            found.append([scale * v * len(group) / len(rows) for v in there])
        return [np.sum(parts, axis=0) for parts in zip(*found, strict=True)], True

    def picks(self, step: int, here: list[Array]) -> bool:
        rule = SCHEDULES[self.setup.schedule][1]
        if rule is not None:
            return rule(step)
        square, x = length(here) ** 2, step / TOTAL
        if self.gate is None:  # equal to the mean, whatever rounding makes of that
            self.gate = square, 0.0
            return True
        mean, variance = self.gate
        mean = 0.9 * mean + 0.1 * square
        variance = 0.9 * variance + 0.1 * (square - mean) ** 2
        self.gate = mean, variance
        return square >= mean + ((1 - x) - x) * math.sqrt(variance)

    def step(self, here: list[Array], without: set[int], weights: list[Array]) -> list[Array]:
        """The perturbation."""
        chosen = [i for i, yes in enumerate(self.setup.where) if yes and i not in without]
        v = [g if i in chosen else np.zeros_like(g) for i, g in enumerate(here)]
        if self.setup.friendly:
            v = self.minus_average(v, chosen)
        size = length(v)
        if size == 0:
            return v
        if self.setup.far == "radius":
            return [0.1 * a / size for a in v]
        if self.setup.far == "adaptive":
            t = [np.abs(w) + 0.01 for w in weights]
            size = length([a * b for a, b in zip(v, t, strict=True)])
            return [0.3 * b * b * a / size for a, b in zip(v, t, strict=True)]
        trust = self.setup.far == "trust"
        return [
            0.05 * (length([w]) if trust else 1.0) * a / length([a]) if a.any() else a
            for a, w in zip(v, weights, strict=True)
        ]

    def minus_average(self, v: list[Array], chosen: list[int]) -> list[Array]:
        if self.average is None:
            self.average = v if length(v) > 0 else None
            return v
        self.average = [0.9 * m + 0.1 * a for m, a in zip(self.average, v, strict=True)]
        pairs = enumerate(zip(v, self.average, strict=True))
        return [a - m if i in chosen else a for i, (a, m) in pairs]


class Fast:
    """The five updates with hf_sam, and what must hold of each.

    Attributes:
        passes: how often each update called the backward pass.
        perturbed: whether it perturbed.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.params = setup, Memory(setup).weights(setup)
        self.passes: list[int] = []
        self.perturbed: list[bool] = []
        self.memory = Memory(setup)

    def run(self) -> Array:
        """Return the numbers at the end."""
        method = self.setup.method()
        for step in range(UPDATES):
            self.update(method, step)
        flat = self.memory.start.copy()
        for places, p in zip(self.memory.places, self.params, strict=True):
            flat[places] = p.detach().double().numpy().ravel()
        return flat

    def update(self, method: Method, step: int) -> None:
        setup, loss, calls = self.setup, Loss(self.setup, step), 0
        whole = torch.arange(sum(setup.sizes)).split(list(setup.sizes))
        without = {i for i, no in enumerate(setup.missing[step]) if no}

        def backward(rows: Tensor, share: Any = 1.0) -> Tensor:
            nonlocal calls
            second = phases[-1] == "descent"
            calls += len(rows) > 1 or rows[0] < 1000
            lost = without | ({setup.lost[step]} - {None} if second else set())
            value = loss.of(self.params, rows % 1000, lost).mean() * share  # type: ignore[arg-type]
            if value.requires_grad:
                value.backward()
            return value.detach()

        phases: list[str] = []
        before = [p.detach().clone() for p in self.params]
        at = Landscape(
            self.params,
            whole,
            backward,
            progress=Progress(step, TOTAL, per_epoch=5),
            seed=SEED,
            names=[f"{i}.weight" for i in range(len(self.params))],
            where=list(setup.where),
            sample=lambda n, generator: [torch.tensor([1000])] * n,
            on_phase=phases.append,
        )
        update = method(at)
        for p, b in zip(self.params, before, strict=True):
            assert torch.equal(p.detach(), b), "the weights did not return"
            assert p.grad is None, "a gradient was left behind"
        for i, u in enumerate(update):
            assert u is None or (i not in without and bool(torch.isfinite(u).all()))
        self.passes.append(calls)
        self.perturbed.append("perturbation_norm" in at.readings)
        with torch.no_grad():
            for p, u in zip(self.params, update, strict=True):
                if u is not None:
                    p -= RATE * u


def cost(setup: Setup, perturbed: bool) -> int:
    """How many pieces of micro-batches an update passes over."""
    if not perturbed:
        return len(setup.sizes)
    rows, count = sum(setup.sizes), setup.groups or 1
    ends = set(np.cumsum(setup.sizes)) | {rows * g // count for g in range(1, count + 1)}
    return 2 * len(ends)


def check(setup: Setup) -> None:
    fast, slow = Fast(setup), Slow(setup)
    found, (expected, perturbed) = fast.run(), slow.run()
    if setup.dtype == torch.float64 and setup.mask == "none":
        assert fast.perturbed == perturbed
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    assert fast.passes == [cost(setup, yes) for yes in fast.perturbed]


@settings(max_examples=60)
@given(setups())
def test_whatever_is_put_together(setup: Setup) -> None:
    check(setup)


@pytest.mark.slow
@settings(max_examples=1500)
@given(setups())
def test_whatever_is_put_together_many_times(setup: Setup) -> None:
    check(setup)
