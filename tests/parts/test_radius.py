# SPDX-License-Identifier: Apache-2.0
"""Radii, and their schedules."""

from __future__ import annotations

import math

import pytest
import torch

from hf_sam import ASAM, ESAM, SAM, LookSAM, Progress, VaSSO, Vector
from hf_sam.parts.radius import budget, layer_radius, relative
from hf_sam.texts import parse_rho
from tests.methods.quadratic import Quadratic, close
from tests.toys import Bowl

X = 0.25


@pytest.mark.parametrize(
    ("text", "rho"),
    [
        ("0.05", 0.05),
        ("linear:0.1:0.02", 0.1 - 0.08 * X),
        ("cosine:0.1:0.02", 0.02 + 0.08 * (1 + math.cos(math.pi * X)) / 2),
        ("lr:0.1", 0.1 * 0.6),
        ("loss:0.1:1", 0.1 / 5.0990195136),
        ("loss:0.1:0.01", 0.01),
        ("loss:0.1:1:0.2", 0.1 / 5.0990195136),
        ("loss:0.1:1:1", 0.1 / 5.0990195136 * (1 - math.cos(math.pi * 0.75)) / 2),
        ("budget:0.1:0.5", 0.1 * 1.75 / 5.0990195136),
        ("budget:0.1:0.01", 0.01),
    ],
)
def test_schedules(text: str, rho: float) -> None:
    """f = 1.75, |g| = 5.099 at w = (1, 0.5); a quarter of the run done, lr at 0.6 of its peak."""
    q = Quadratic()
    q.update(SAM(parse_rho(text)), progress=Progress(25, 100, lr_ratio=0.6))
    close(q.eps().norm(), rho)


def test_a_budget_is_free_of_scale() -> None:
    """The loss rises to first order by the given share, whatever it is measured in."""
    for scale in (1.0, 1000.0):
        q = Quadratic()
        q.scale = scale
        q.update(SAM(budget(0.02, 1.0)))
        close(q.eps() @ torch.tensor([1.0, 5.0], dtype=torch.float64) / 1.75, 0.02)


def test_a_budget_with_a_vanishing_gradient() -> None:
    q = Quadratic(w=(0.0, 0.0))
    close(q.update(SAM(budget(0.02, 1.0))), [0.0, 0.0])


@pytest.mark.parametrize("text", ["budget:0.02", "loss:0.5"])
def test_a_radius_that_a_plateau_does_not_bound_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RHO_MAX.*without bound on a plateau.*such as 0.1"):
        parse_rho(text)


def test_an_absolute_budget_ends_at_zero() -> None:
    found = []
    for step in (0, 79, 80, 90, 99):
        q = Quadratic()
        q.update(SAM(parse_rho("loss:0.5:1:0.2")), step)
        found.append(float(q.eps().norm()) * 5.0990195136 / 0.5)
    half, last = (1 - math.cos(math.pi / 2)) / 2, (1 - math.cos(math.pi * 0.05)) / 2
    assert found == pytest.approx([1.0, 1.0, 1.0, half, last])


RELATIVE = {
    "sam": SAM(relative(0.1)),
    "asam": ASAM(relative(0.1)),
    "looksam": LookSAM(relative(0.1), layerwise="unit"),
    "esam": ESAM(relative(0.1), beta=1.0, gamma=1.0),
    "vasso": VaSSO(relative(0.1)),
}


@pytest.mark.parametrize("key", RELATIVE)
def test_a_relative_radius_in_any_method(key: str) -> None:
    """Tensors 1 and 0.5 of one number each: a tenth of each of them."""
    q = Quadratic(split=True)
    q.update(RELATIVE[key])
    close(q.eps(), [0.1, 0.05])


@pytest.mark.parametrize("kind", ["unit", "trust"])
def test_layer_radius(kind: str) -> None:
    bowl = Bowl()
    at = bowl.landscape()
    v = layer_radius(0.1, kind)(at.gradient(), at)
    assert v[3] is None
    for entry, w in zip(v, bowl.params[:3], strict=False):
        length = 0.1 * w.detach().norm() if kind == "trust" else torch.tensor(0.1)
        torch.testing.assert_close(entry.norm(), length.to(entry.dtype))
    assert not bool(at.readings["skipped"])


def test_layer_radius_leaves_a_zero_direction_and_reports_a_zero_gradient() -> None:
    at = Bowl().landscape()
    v = Vector([torch.zeros(2), torch.tensor([3.0, 4.0])])
    moved = layer_radius(1.0)(v, at)
    assert torch.equal(moved[0], torch.zeros(2))
    torch.testing.assert_close(moved[1], torch.tensor([0.6, 0.8]))
    assert not bool(at.readings["skipped"])
    layer_radius(1.0)(Vector([torch.zeros(2)]), at)
    assert bool(at.readings["skipped"])


def test_layer_radius_of_a_non_finite_gradient_perturbs_nothing() -> None:
    q, method = Quadratic(split=True), LookSAM(layerwise="unit")
    q.gradients = [[math.inf, 1.0]]
    q.update(method)
    close(q.eps(), [0.0, 0.0])


def test_layerwise_with_a_schedule() -> None:
    q = Quadratic(split=True)
    q.update(LookSAM(parse_rho("linear:0.1:0"), layerwise="unit"), progress=Progress(1, 2))
    close(q.eps(), [0.05, 0.05])
