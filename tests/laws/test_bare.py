# SPDX-License-Identifier: Apache-2.0
"""The laws that a method keeps on a bare Landscape, for every row of `cases.py`, whichever way a
device walks over the weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import METHODS, Landscape, Method, Progress, Vector
from hf_sam.landscape.layers import is_changed
from tests.cases import CASES, Case
from tests.toys import Bowl, assert_same, bowl_for

pytestmark = pytest.mark.usefixtures("walk")
every_case = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def build(case: Case, **more: object) -> Method:
    return METHODS[case.key](**{**case.options, **more})


def copies(bowl: Bowl) -> list[torch.Tensor]:
    return [p.detach().clone() for p in bowl.params]


def assert_at(bowl: Bowl, before: list[torch.Tensor]) -> None:
    for p, b in zip(bowl.params, before, strict=True):
        assert torch.equal(p.detach(), b)


@every_case
@DTYPES
@pytest.mark.parametrize("batches", [1, 3])
def test_exact_return(case: Case, dtype: torch.dtype, batches: int) -> None:
    """Law 1: after an update's passes every parameter is bitwise what it was."""
    bowl, method = bowl_for(case, dtype), build(case)
    before, pointers = copies(bowl), [p.data_ptr() for p in bowl.params]
    for step in range(12):
        method(bowl.landscape(step, total=12, batches=batches))
        assert_at(bowl, before)
    assert pointers == [p.data_ptr() for p in bowl.params], "storage was rebound"


@every_case
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_exact_return_after_an_exception(case: Case, failing: int) -> None:
    """Law 1: also when any pass raises."""
    bowl, method = bowl_for(case), build(case)
    before = copies(bowl)
    total = sum(case.passes(step, 12) for step in range(12))
    if failing > total:
        pytest.skip("the method has fewer passes")
    bowl.fail_at = failing
    with pytest.raises(RuntimeError, match="a pass failed"):
        for step in range(12):
            method(bowl.landscape(step, total=12))
    assert_at(bowl, before)


@every_case
@pytest.mark.parametrize("number", [2, 3])
def test_a_gradient_that_a_later_pass_lacks_counts_as_zero_there(case: Case, number: int) -> None:
    """Laws 1 and 7: as if that pass had a gradient of zeros, and the parameter returns.

    It has no update if that pass is the update.
    """
    if number == 3 and case.cuts:
        pytest.skip("the third pass is the second group's at w")
    lacking, zero = bowl_for(case), bowl_for(case)
    before = copies(lacking)
    lacking.drop_bias_at, zero.zero_bias_at = number, number
    updates = [build(case)(bowl.landscape(11, total=12)) for bowl in (lacking, zero)]
    assert_at(lacking, before)
    assert lacking.passes == zero.passes
    for a, b in zip(*updates, strict=True):
        if a is None:
            assert b is None or not b.any()
        else:
            assert b is not None and torch.equal(a, b)


@every_case
def test_what_has_no_gradient_at_w_has_no_update(case: Case) -> None:
    """Law 7: whatever later passes find."""
    bowl, method = bowl_for(case), build(case)
    before = copies(bowl)
    bowl.drop_bias_at = 1
    update = method(bowl.landscape(11, total=12))
    assert_at(bowl, before)
    # The first pass of a method that draws or selects may be on other data or on a part of the
    # parameters, and each group has a gradient at w of its own.
    assert update[2] is None or case.cuts or case.batch_coupled or draws(case)


@every_case
def test_a_missing_gradient_stays_missing(case: Case) -> None:
    """Law 7: None, not zeros."""
    bowl, method = bowl_for(case), build(case)
    for step in range(8):
        update = method(bowl.landscape(step, total=8))
        assert update[3] is None
        assert all(update[i] is not None for i in range(3))
        assert all(p.grad is None for p in bowl.params)


@every_case
def test_rho_zero_is_the_plain_gradient(case: Case) -> None:
    """Law 2 on a bare Landscape."""
    bowl, method = bowl_for(case), build(case, **case.rho_zero)
    for step in range(6):
        at = bowl.landscape(step, total=6, batches=2)
        update = method(at)
        plain = METHODS["none"]()(bowl.landscape(step, total=6, batches=2))
        for a, b in zip(update, plain, strict=True):
            if case.rho_zero_exact or a is None:
                assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
            else:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@every_case
def test_passes_are_counted(case: Case) -> None:
    """Law 9: exactly the passes that the row says."""
    bowl, method = bowl_for(case), build(case)
    for step in range(12):
        bowl.passes = 0
        method(bowl.landscape(step, total=12))
        assert bowl.passes == case.passes(step, 12), f"update {step}"


@every_case
def test_randomness_is_a_function_of_seed_and_update(case: Case) -> None:
    """Law 8: two objects agree, whatever the global generators hold, and leave them as one pass
    would.
    """
    updates = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        bowl, method = bowl_for(case), build(case)
        state = torch.get_rng_state()
        updates.append([method(bowl.landscape(step, total=8)) for step in range(8)])
        assert torch.equal(state, torch.get_rng_state()), "drew from the global generator"
    for one, other in zip(*updates, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@every_case
def test_accumulation_is_invisible(case: Case) -> None:
    """Law 3 on a bare Landscape: three micro-batches are one batch."""
    if case.batch_coupled:
        pytest.skip("the method draws or selects examples")
    whole, cut = build(case), build(case)
    bowl = bowl_for(case)
    for step in range(6):
        a = whole(bowl.landscape(step, total=6))
        b = cut(bowl.landscape(step, total=6, batches=3))
        for x, y in zip(a, b, strict=True):
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@every_case
def test_state_starts_at_first_use(case: Case) -> None:
    """Law 6: a method that runs first at a late update does what it does first at an early one."""
    found = []
    for step in (0, 11):
        progress = Progress(step, 12, per_epoch=5, learning_rate=0.0)
        method, at = build(case), bowl_for(case).landscape(0, progress=progress)
        assert not method.state_dict()
        update = method(at)
        found.append((update, method.state_dict()))
        assert method.keeps_state == case.stateful == bool(method.state_dict())
    (early, first), (late, second) = found
    assert first.keys() == second.keys()
    if not draws(case) and case.passes(0, 12) == case.passes(11, 12):
        assert_same(list(early), list(late))
        assert_same(first, second)


def draws(case: Case) -> bool:
    """Whether an early or a late update, or its state, depends on the seed."""
    for step in (0, 11):
        found = []
        for seed in (1, 2):
            method = build(case)
            update = method(bowl_for(case).landscape(step, total=12, seed=seed))
            found.append([*update, *(v for v in method.state_dict().values())])
        try:
            assert_same(*found)
        except AssertionError:
            return True
    return False


@every_case
def test_a_zero_gradient_means_no_perturbation(case: Case) -> None:
    """Law 12: no NaN, weights return, and it is noted."""
    bowl = bowl_for(case)
    before, moved = copies(bowl), []

    def backward(
        batch: Any, share: float = 1.0, with_losses: bool = False, head: Any = None
    ) -> object:
        moved.append(any(not torch.equal(p, b) for p, b in zip(bowl.params, before, strict=True)))
        moved.append(case.adapters and is_changed(bowl.layers()[0]))
        loss = sum((p * 0.0).sum() for p in bowl.params) * share
        if head is not None:
            logits = loss[None, None]  # type: ignore[index]
            loss = head(logits, logits, lambda z: (z * 0.0).sum()).sum()
        loss.backward()
        losses = torch.zeros(len(batch[0]), dtype=torch.float64)
        return (loss.detach(), losses) if with_losses else loss.detach()

    at = Landscape(
        bowl.params,
        [bowl.batch(0)],
        backward,
        names=bowl.names,
        per_example=lambda batch: torch.zeros(len(batch[0]), dtype=torch.float64),
        sample=bowl.sample,
        layers=bowl.layers,
        progress=bowl.landscape(11, total=12).progress,
    )
    update = build(case)(at)
    for u, p in zip(update, bowl.params, strict=True):
        assert u is not None and torch.equal(u, torch.zeros_like(p))
    assert_at(bowl, before)
    # Noise needs no gradient, and a second adapter begins at zero; every other perturbation is
    # skipped, and the log says so.
    second = case.adapters and case.stateful
    assert not any(moved) or draws(case) or second
    if "skipped" in at.readings:
        assert bool(at.readings["skipped"]) == (not any(moved))
        assert bool(at.readings["perturbation_norm"] > 0) == (any(moved) and not second)


@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_leaves_no_trace(case: Case, bad: float) -> None:
    """Law 12: weights return, and no state absorbs it: all later updates are finite.

    Whichever update it is, the first one and one that renews state included.
    """
    for when in (0, 1, 3, 5):
        bowl, method = bowl_for(case), build(case)
        before = copies(bowl)
        for step in range(7):
            at = bowl.landscape(step, total=12)
            if step == when:
                x, y = bowl.batch(step)
                broken = {"names": bowl.names, "per_example": bowl.per_example}
                broken |= {"sample": bowl.sample, "progress": at.progress}
                broken["layers"] = bowl.layers
                at = Landscape(bowl.params, [(x * bad, y)], bowl.backward, **broken)
            update = method(at)
            assert_at(bowl, before)
            finite = all(t is None or torch.isfinite(t).all() for t in update)
            assert finite == (step != when), f"update {step}"
            state = [v for v in method.state_dict().values() if isinstance(v, (Tensor, Vector))]
            tensors = [t for v in state for t in (v if isinstance(v, Vector) else [v])]
            assert all(t is None or torch.isfinite(t).all() for t in tensors)


def test_a_gradient_left_from_before_does_not_count() -> None:
    """A hand-written loop may forget zero_grad: each pass is its own."""
    bowl = Bowl()
    clean = METHODS["sam"]()(bowl.landscape())
    for p in bowl.params:
        p.grad = torch.ones_like(p)
    stale = METHODS["sam"]()(bowl.landscape())
    assert all(a is b or torch.equal(a, b) for a, b in zip(clean, stale, strict=True))


def test_readings_are_those_of_the_first_step() -> None:
    """Their definition, also where a second step starts from the perturbed point."""
    bowl = Bowl(torch.float64)
    at, before = bowl.landscape(0, total=4), copies(bowl)
    eps = at.gradient().mul_(0.1)
    step = eps.clone()
    with at.perturbed(eps):
        there = at.gradient()
        cosine = step.dot(there) / (step.norm() * there.norm())
        rise = at.readings["sharpness"].clone()
        with at.perturbed(there.clone().mul_(0.1)):
            at.gradient()
    torch.testing.assert_close(at.readings["grad_cosine"], cosine)
    assert torch.equal(at.readings["sharpness"], rise) and rise > 0
    assert_at(bowl, before)


def test_a_gradient_that_is_stepped_along_needs_no_reading() -> None:
    bowl = Bowl()
    at, before = bowl.landscape(0, total=4), copies(bowl)
    with at.perturbed(at.gradient().mul_(0.1)), at.perturbed(at.gradient().mul_(0.1)):
        assert torch.isfinite(at.gradient().norm())
    assert "grad_cosine" not in at.readings
    assert_at(bowl, before)
