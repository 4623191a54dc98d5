# SPDX-License-Identifier: Apache-2.0
"""Fields of parts and methods do what they say, whenever they are set."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from hf_sam import ASAM, METHODS, SAM, FriendlySAM, SparseSAMFisher, Vector
from hf_sam.parts import radius
from hf_sam.parts.base import State
from tests.methods.quadratic import Quadratic

every_key = pytest.mark.parametrize("key", METHODS)


def length(method: Any) -> float:
    q = Quadratic()
    q.update(method)
    return float(q.eps().norm())


@pytest.mark.parametrize("kind", [SAM, FriendlySAM])
def test_a_radius_that_is_set_later_counts(kind: type) -> None:
    method = kind(rho=0.05)
    assert length(method) == pytest.approx(0.05)
    other = kind()
    other.rho = 0.5
    assert length(copy.deepcopy(other)) == pytest.approx(0.5)
    assert length(other) == pytest.approx(0.5)
    assert length(dataclasses.replace(method, rho=0.3)) == pytest.approx(0.3)


@every_key
def test_a_replaced_field_is_a_new_method(key: str) -> None:
    method = METHODS[key]()
    for f in dataclasses.fields(method):
        same = dataclasses.replace(method, **{f.name: getattr(method, f.name)})
        assert same == method and same is not method


def test_what_is_set_later_is_checked() -> None:
    method = ASAM()
    with pytest.raises(ValueError, match="ASAM: eta=-1 is not allowed"):
        method.eta = -1
    with pytest.raises(AttributeError, match="no field 'roh'.*did you mean 'rho'"):
        method.roh = 0.1
    with pytest.raises(ValueError, match="sparsity=2 is not allowed"):
        SparseSAMFisher().sparsity = 2
    with pytest.raises(TypeError, match="ascent"):
        SAM(ascent=radius(0.1))  # type: ignore[call-arg]


def test_state_is_what_it_is_asked_for() -> None:
    state = State(mask=Vector([torch.ones(1)]), started=torch.tensor(True), updates=3)
    assert state.vector("mask") is state["mask"] and state.tensor("started") is state["started"]
    assert state.number("updates", 0) == 3 and state.number("others", 7) == 7
    assert state.vector("nothing") is None and state.tensor("nothing") is None
    with pytest.raises(AssertionError, match="'updates' is no Vector"):
        state.vector("updates")
