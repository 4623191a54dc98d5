# SPDX-License-Identifier: Apache-2.0
"""Masks: exactly as many weights as asked for, the right ones, and the same ones after a resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_sam import Landscape, Progress, Vector
from hf_sam.parts import chain, dynamic_mask, fisher_mask, radius
from hf_sam.parts.masks import Mask
from hf_sam.parts.scores import largest, live_count, n_of_m, whole_tensors
from tests.toys import Bowl

NAN, INF = float("nan"), float("inf")
SPARSITIES = (0.2, 0.5, 0.8, 0.9)
SHAPES = [(4, 6), (3, 4), (3,), (2, 2)]
N = 43


def at(step: int = 0, total: int = 100, shapes: Sequence[tuple[int, ...]] = SHAPES, **more: Any):
    """The Landscape of an update, for parts that only look at weights and progress."""
    draw = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(*s, generator=draw)) for s in shapes]
    place = {"progress": Progress(step, total), "seed": 5, **more}
    return Landscape(params, [None], lambda batch, share=1.0: torch.zeros(()), **place)


def gradient(step: int, missing: Sequence[int] = (), shapes: Any = SHAPES) -> Vector:
    draw = torch.Generator().manual_seed(1000 + step)
    drawn = [torch.randn(*s, generator=draw) for s in shapes]
    return Vector(None if i in missing else t for i, t in enumerate(drawn))


def on(part: Mask) -> list[Tensor]:
    mask = part.state["mask"]
    assert isinstance(mask, Vector) and all(m is None or m.dtype == torch.bool for m in mask)
    return [m for m in mask if m is not None]


def live(part: Mask) -> int:
    return sum(int(m.sum()) for m in on(part))


# -- the choice of the largest --------------------------------------------------------------------

ODD = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -1.0, -3.0, NAN, INF, -INF, 1e-45, 3e38])
SCORES = st.lists(
    st.lists(st.one_of(ODD, st.floats(-2, 2, width=32)), min_size=0, max_size=12),
    min_size=1,
    max_size=4,
)


@given(SCORES, st.integers(0, 50))
def test_largest_is_a_stable_sort(scores: list[list[float]], count: int) -> None:
    """Over all tensors; the first among equals; non-finite is zero, negative is never chosen."""
    tensors = [torch.tensor(s, dtype=torch.float32) for s in scores]
    numbers = [x if math.isfinite(x) else 0.0 for s in scores for x in s]
    order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
    expected = {i for i in order[:count] if numbers[i] >= 0}
    masks = largest([None, *tensors], count)
    assert masks[0] is None
    assert {i for i, yes in enumerate(torch.cat(masks[1:]).tolist()) if yes} == expected
    assert all(
        m.shape == t.shape and m.dtype == torch.bool
        for m, t in zip(masks[1:], tensors, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.999, 1.0])
def test_largest_is_topk(share: float, dtype: torch.dtype) -> None:
    scores = [(torch.randn(s) ** 4).to(dtype) for s in [(300, 70), (), (999,), (20, 3, 3, 5)]]
    whole = torch.cat([s.flatten() for s in scores]).float()
    count = round(share * len(whole))
    masks = largest(scores, count)
    chosen = torch.cat([s.flatten()[m.flatten()] for s, m in zip(scores, masks, strict=True)])
    assert len(chosen) == count
    expected = torch.topk(whole, count).values
    assert torch.equal(chosen.float().sort(descending=True).values, expected)


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_live_counts(n: int, percent: int) -> None:
    """N - ceil(sparsity N), whatever the sparsity's rounding."""
    scores = [torch.zeros(n // 2), None, torch.zeros(n - n // 2)]
    assert live_count(scores, percent / 100) == n - -(-percent * n // 100)


# -- the dynamic mask -----------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    st.sampled_from(SPARSITIES),
    st.floats(0, 1),
    st.sampled_from(["gradient", "weight"]),
    st.sampled_from(["random", "gradient"]),
    st.integers(0, 2**30),
)
def test_the_live_count_never_changes(
    sparsity: float, drop_rate: float, drop: str, growth: str, seed: int
) -> None:
    """100 updates with gradients that come and go: exchanges are disjoint and as large as said."""
    part = dynamic_mask(sparsity, 1, drop_rate, drop, growth)
    choose = torch.Generator().manual_seed(seed)
    count = N - math.ceil(sparsity * N - 1e-9)
    before: list[Tensor] | None = None
    for step in range(100):
        missing = torch.randperm(4, generator=choose)[: step % 4].tolist()
        part(gradient(seed + step, missing), at(step, seed=seed))
        now = [m.clone() for m in on(part)]
        assert sum(m.numel() for m in now) == N and live(part) == count
        if before is not None:
            gone = sum(int((a & ~b).sum()) for a, b in zip(before, now, strict=True))
            come = sum(int((b & ~a).sum()) for a, b in zip(before, now, strict=True))
            rate = drop_rate * (1 + math.cos(math.pi * step / 100)) / 2
            assert gone == come == min(int(count * rate), N - count)
        before = now


@pytest.mark.parametrize(
    ("step", "rate"),
    [(50, 0.4267766953), (100, 0.25), (150, 0.0732233047), (200, 0.0)],
)
def test_the_share_that_is_exchanged(step: int, rate: float) -> None:
    """Along half a cosine from drop_rate = 0.5 to 0 at the end of 200."""
    shapes = [(400, 500)]
    part = dynamic_mask(0.5, 1)
    part(gradient(0, shapes=shapes), at(0, 200, shapes))
    before = on(part)[0].clone()
    part(gradient(1, shapes=shapes), at(step, 200, shapes))
    assert int((before & ~on(part)[0]).sum()) == int(100_000 * rate + 1e-6)


@pytest.mark.parametrize("drop", ["gradient", "weight"])
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_what_is_dropped_and_grown(drop: str, growth: str) -> None:
    """The least of the live by one score go, the largest of the others by the other come."""
    part = dynamic_mask(0.5, 1, 0.5, drop, growth)
    part(gradient(0), at(0))
    before = torch.cat([m.flatten() for m in on(part)])
    v, here = gradient(1), at(1)
    sizes = torch.cat([t.flatten().abs() for t in v])
    weights = torch.cat([p.detach().flatten().abs() for p in here.params])
    part(v, here)
    now = torch.cat([m.flatten() for m in on(part)])
    exchanged = int((before & ~now).sum())
    assert exchanged == int(21 * 0.5 * (1 + math.cos(math.pi / 100)) / 2)
    kept_by = sizes if drop == "gradient" else weights
    assert kept_by[before & now].min() >= kept_by[before & ~now].max()
    if growth == "gradient":
        assert sizes[~before & now].min() >= sizes[~before & ~now].max()


def test_the_first_mask_is_random_but_the_same_everywhere() -> None:
    one, other, third = dynamic_mask(), dynamic_mask(), dynamic_mask()
    one(gradient(0), at(4))
    torch.manual_seed(99)
    other(gradient(1), at(4))
    third(gradient(0), at(5))
    assert all(torch.equal(a, b) for a, b in zip(on(one), on(other), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(on(one), on(third), strict=True))


# -- the Fisher mask ------------------------------------------------------------------------------


def fisher_by_hand(bowl: Bowl, step: int, n: int) -> list[Tensor]:
    """Squared gradients of the examples that the update's generator draws, one after the other."""
    scores = [torch.zeros_like(p) for p in bowl.params]
    for batch in bowl.landscape(step).sample(n):
        grads = torch.autograd.grad(bowl.losses(batch).sum(), bowl.params, allow_unused=True)
        for score, g in zip(scores, grads, strict=True):
            score += 0.0 if g is None else g * g
    return scores


def test_it_is_the_largest_fisher_information() -> None:
    bowl, part = Bowl(), fisher_mask(0.7, fisher_samples=9)
    here = bowl.landscape(3)
    v = here.gradient()
    bowl.passes = 0
    part(v, here)
    assert bowl.passes == 9 and all(p.grad is None for p in bowl.params)
    scores = fisher_by_hand(bowl, 3, 9)
    whole = torch.cat([s.flatten() for s in scores])
    masks = torch.cat([m.flatten() for m in on(part)])
    assert int(masks.sum()) == N - math.ceil(0.7 * N)
    assert whole[masks].min() > whole[~masks].max()


def test_whole_tensors_by_their_mean() -> None:
    bowl, part = Bowl(), fisher_mask(0.5, fisher_samples=9, pattern="structured")
    here = bowl.landscape(3)
    eps = part(here.gradient(), here)
    means = [float(s.mean()) for s in fisher_by_hand(bowl, 3, 9)]
    order = sorted(range(4), key=lambda i: -means[i])
    sizes = [24, 12, 3, 4]
    wanted, expected = 21, set()
    while wanted > 0:
        expected.add(order[len(expected)])
        wanted -= sizes[order[len(expected) - 1]]
    assert {i for i, m in enumerate(part.state["mask"]) if bool(m)} == expected
    assert all(m.shape == () for m in part.state["mask"]), "one byte per tensor"
    assert {i for i, t in enumerate(eps) if t is not None} == expected - {3}
    assert eps.present and len(eps.present) < 3


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([0.0, *SPARSITIES, 1.0])
)
def test_whole_tensors_overshoot_by_one_at_most(sizes: list[int], sparsity: float) -> None:
    scores = [torch.rand(n) for n in sizes]
    count = live_count(scores, sparsity)
    masks = [bool(m) for m in whole_tensors(scores, count)]
    chosen = sorted((s for s, m in zip(scores, masks, strict=True) if m), key=lambda s: s.mean())
    total = sum(len(s) for s in chosen)
    assert total >= count and (not chosen or total - len(chosen[0]) < count)


def test_whole_tensors_take_no_part_in_the_norm_of_a_later_radius() -> None:
    bowl = Bowl()
    ascent = chain(fisher_mask(0.5, pattern="structured", fisher_samples=4), radius(0.2))
    here = bowl.landscape(0)
    eps = ascent(here.gradient(), here)
    assert len(eps.present) < 3 and float(eps.norm()) == pytest.approx(0.2)


def test_two_of_four() -> None:
    row = torch.tensor([[0.1, 0.4, 0.2, 0.3, 9, 8, 7, 6]])
    assert n_of_m(row, 2, 4).int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    "shape", [(3, 8), (2, 7), (5, 1), (4, 6, 3), (3, 5, 2, 2), (2, 4, 1, 3, 2)]
)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("ties", [False, True])
def test_n_of_m_along_the_input_dimension(
    shape: tuple[int, ...], n: int, m: int, ties: bool
) -> None:
    """Each run of m input weights of one output (and one place of a kernel) keeps its n largest."""
    scores = torch.ones(shape) if ties else torch.rand(shape)
    mask = n_of_m(scores, n, m)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    inputs = shape[1]
    columns = scores.movedim(1, -1).reshape(-1, inputs)
    kept = mask.movedim(1, -1).reshape(-1, inputs)
    for column, keep in zip(columns, kept, strict=True):
        for start in range(0, inputs, m):
            group, chosen = column[start : start + m], keep[start : start + m]
            assert int(chosen.sum()) == min(n, len(group))
            if not chosen.all():
                assert group[chosen].min() >= group[~chosen].max()


def test_n_of_m_leaves_vectors_alone() -> None:
    part = fisher_mask(0.75, fisher_samples=4, pattern="1:4")
    bowl = Bowl()
    here = bowl.landscape(0)
    eps = part(here.gradient(), here)
    mask = part.state["mask"]
    assert [int(m.sum()) for m in mask] == [4 * 2, 3, 1, 2] and mask[2].shape == ()
    assert eps[2] is not None and bool((eps[2] != 0).all())


# -- every mask -----------------------------------------------------------------------------------


def test_no_sparsity_and_nothing_but() -> None:
    for kind in (fisher_mask, dynamic_mask):
        for sparsity, left in ((0, N), (1, 0)):
            part, bowl = kind(sparsity, 1), Bowl()
            for step in range(3):
                here = bowl.landscape(step)
                v = here.gradient()
                expected = v * float(not sparsity)
                masked = part(v, here)
                assert live(part) == left
                for a, b in zip(masked, expected, strict=True):
                    assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("make", [dynamic_mask, lambda **k: fisher_mask(fisher_samples=1, **k)])
def test_when_it_is_renewed(make: Any) -> None:
    """At first use, then by interval, epoch or run; at a non-finite direction later."""

    def renewals(steps: Any, bad: Sequence[int] = (), **more: Any) -> list[int]:
        part, bowl, found = make(**more), Bowl(), []
        for step in steps:
            here = bowl.landscape(step)
            v = here.gradient()
            if step in bad:
                v.mul_(NAN)
            part(v, here)
            found.append(part.state["renewed"])
        return sorted(set(found))

    assert renewals(range(12)) == [0, 5, 10], "an epoch has five updates"
    assert renewals(range(7, 19)) == [7, 12, 17], "its first use may come late"
    assert renewals(range(6), update_interval=2) == [0, 2, 4]
    assert renewals(range(0, 12, 3), update_interval=4) == [0, 6]
    assert renewals(range(6), bad=[0, 2, 3], update_interval=2) == [0, 4]


def test_without_epochs_it_is_renewed_never() -> None:
    part = dynamic_mask()
    for step in range(0, 100, 7):
        part(gradient(step), at(step))
    assert part.state["renewed"] == 0


def test_it_covers_what_may_be_perturbed() -> None:
    where = [True, False, True, True]
    part, here = dynamic_mask(0.5), at(where=where)
    here.params[2].requires_grad_(False)
    masked = part(gradient(0, missing=[1, 2, 3]), here)
    mask = part.state["mask"]
    assert [m is not None for m in mask] == [True, False, False, True]
    assert live(part) == 14 and masked.present == [0]


@pytest.mark.parametrize("pattern", ["unstructured", "structured", "2:4"])
def test_a_loaded_mask_does_what_the_saved_one_did(pattern: str) -> None:
    bowl, part, again = Bowl(), fisher_mask(0.5, pattern=pattern), fisher_mask(0.5, pattern=pattern)
    here = bowl.landscape(0)
    part(here.gradient(), here)
    other = bowl.landscape(2)
    again(other.gradient(), other)
    again.load_state_dict(part.state_dict())
    bowl.passes = 0
    here = bowl.landscape(3)
    v = here.gradient()
    for a, b in zip(part(v.clone(), here), again(v.clone(), here), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert bowl.passes == 1, "no renewal"


def test_half_precision_gradients_are_squared_in_float32() -> None:
    w = torch.nn.Parameter(torch.ones(2, 4, dtype=torch.float16))

    def backward(batch: Tensor, share: float = 1.0) -> Tensor:
        loss = (w * batch).sum()
        loss.backward()
        return loss.detach()

    sizes = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).half().view(2, 4) * 1e-4  # squares underflow
    here = Landscape([w], [sizes], backward, sample=lambda n, generator: [sizes] * n)
    part = fisher_mask(0.5, fisher_samples=2)
    part(here.gradient(), here)
    assert on(part)[0].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "4:2", "sparsity": 0.5}, "pattern='4:2'.*n:m with 1 <= n <= m"),
        ({"pattern": "0:2", "sparsity": 1.0}, "pattern='0:2'"),
        ({"pattern": "structurd"}, "pattern='structurd' is not one of unstructured, structured"),
        ({"pattern": "1:4"}, "pattern='1:4' keeps 1 of 4 weights, which is sparsity 0.75"),
        ({"sparsity": 1.5}, "sparsity=1.5 is not allowed"),
        ({"sparsity": NAN}, "sparsity=nan"),
        ({"update_interval": 0}, "update_interval=0"),
        ({"fisher_samples": 0}, "fisher_samples=0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fisher_mask(**options)


@pytest.mark.parametrize("options", [{"drop_rate": -0.1}, {"drop": "random"}, {"growth": "weight"}])
def test_what_a_dynamic_mask_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        dynamic_mask(**options)
