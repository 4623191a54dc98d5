# SPDX-License-Identifier: Apache-2.0
"""Directions: Friendly SAM's running average, and chains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_sam import Vector
from hf_sam.parts.direction import chain, minus_average
from hf_sam.parts.radius import radius
from tests.methods.quadratic import close
from tests.toys import Bowl


def step(part: minus_average, *entries: list[float] | None) -> Vector:
    tensors = [None if e is None else torch.tensor(e, dtype=torch.float64) for e in entries]
    return part(Vector(tensors), Bowl().landscape())


def average(part: minus_average) -> list[Any]:
    return [None if m is None else m.tolist() for m in part.state["average"]]


def test_average_and_difference() -> None:
    part = minus_average(sigma=0.5, decay=0.6)
    close(step(part, [1.0, 5.0])[0], [1.0, 5.0])
    close(step(part, [2.0, 4.0])[0], [2 - 0.5 * 1.4, 4 - 0.5 * 4.6])
    close(part.state["average"][0], [1.4, 4.6])


def test_a_missing_gradient_counts_as_zero_and_stays_missing() -> None:
    part = minus_average(decay=0.5)
    step(part, [4.0], None, [2.0])
    assert average(part) == [[4.0], None, [2.0]]
    moved = step(part, [2.0], [8.0], None)
    assert average(part) == [[3.0], [4.0], [1.0]]
    assert [None if t is None else t.tolist() for t in moved] == [[-1.0], [4.0], None]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_gradient_is_not_absorbed(bad: float) -> None:
    part = minus_average(decay=0.5)
    moved = step(part, [1.0, bad])
    assert not 0 < float(moved.norm()) < float("inf"), "and must not be followed either"
    assert average(part) == [[0.0, 0.0]]
    close(step(part, [1.0, 5.0])[0], [1.0, 5.0])  # now is the first use
    step(part, [bad, 1.0])
    assert average(part) == [[1.0, 5.0]]
    close(step(part, [3.0, 1.0])[0], [1.0, -2.0])


def test_rounding_is_no_direction() -> None:
    part = minus_average(decay=0.9)
    step(part, [1.0, 5.0])
    close(step(part, [1.0, 5.0 + 1e-7])[0], [0.0, 0.0])
    assert step(part, [1.0, 5.0 + 1e-3])[0].norm() > 0


def test_two_kinds_of_numbers() -> None:
    """Parameters of two types each keep theirs."""
    part = minus_average(decay=0.5)
    for _ in range(2):
        v = Vector([torch.ones(2, dtype=torch.bfloat16), torch.arange(2, dtype=torch.float64)])
        moved = part(v, Bowl().landscape())
    assert [t.dtype for t in moved] == [torch.bfloat16, torch.float64]
    assert [t.dtype for t in part.state["average"]] == [torch.bfloat16, torch.float64]


def test_a_chain_applies_its_parts_in_order_and_keeps_their_state() -> None:
    parts = chain(minus_average(decay=0.5), radius(0.2))
    at = Bowl().landscape()
    parts(Vector([torch.tensor([1.0, 0.0])]), at)
    moved = parts(Vector([torch.tensor([1.0, 2.0])]), at)
    torch.testing.assert_close(moved[0], torch.tensor([0.0, 0.2]))
    assert parts.keeps_state
    other = chain(minus_average(decay=0.5), radius(0.2))
    other.load_state_dict(parts.state_dict())
    assert other.state_dict().keys() == {"parts.0.average", "parts.0.started"}
    again = Vector([torch.tensor([0.5, 0.0])])
    torch.testing.assert_close(parts(again.clone(), at)[0], other(again.clone(), at)[0])
