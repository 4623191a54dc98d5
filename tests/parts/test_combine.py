# SPDX-License-Identifier: Apache-2.0
"""Combinations of the gradients here and there."""

import torch

from hf_sam import SAM, Composed, StableSAM, Vector
from hf_sam.parts.combine import rescaled, there_only
from hf_sam.parts.radius import radius
from tests.methods.quadratic import Quadratic


def test_rescaled_keeps_a_number_only() -> None:
    here = Vector([torch.tensor([3.0]), None, torch.tensor([4.0])])
    finish = rescaled()(here)
    here.mul_(7.0)  # the storage is used for something else
    there = finish(Vector([torch.tensor([0.0]), None, torch.tensor([0.5])]))
    torch.testing.assert_close(there[2], torch.tensor([5.0]))
    assert there[1] is None and rescaled().needs_here and not there_only().needs_here


def test_a_vanished_gradient_there_stays_zero() -> None:
    finish = rescaled()(Vector([torch.ones(2)]))
    assert torch.equal(finish(Vector([torch.zeros(2)]))[0], torch.zeros(2))


def test_stable_is_sam_with_that_combination() -> None:
    a = Quadratic().update(Composed(radius(0.1), combine=rescaled()))
    assert torch.equal(a, Quadratic().update(StableSAM(0.1)))
    assert not StableSAM().local_ascent and SAM().local_ascent
