# SPDX-License-Identifier: Apache-2.0
"""`Landscape`, `Data` and `Vector` where no law looks: strays, order, processes, mixed kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import SAM, Data, Landscape, Update, Vector
from hf_sam.landscape import Engine
from hf_sam.vector import Selection
from tests.toys import Bowl


class Late:
    """Two parameters, of which the second has a gradient from the second pass on."""

    def __init__(self) -> None:
        self.params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        self.passes = 0

    def backward(self, batch: Any, share: float = 1.0) -> Tensor:
        self.passes += 1
        used = self.params if self.passes > 1 else self.params[:1]
        loss = share * torch.stack([p.square().sum() for p in used]).sum()
        loss.backward()
        return loss.detach()

    def landscape(self) -> Landscape:
        return Landscape(self.params, [torch.zeros(4)], self.backward)


def test_what_had_no_gradient_at_first_has_none_later() -> None:
    """Or weight decay would touch a parameter that the loss does not use."""
    toy = Late()
    at = toy.landscape()
    assert at.gradient()[1] is None
    assert at.gradient()[1] is None and toy.passes == 2
    assert SAM()(Late().landscape())[1] is None


def test_gradients_that_lie_around_are_no_part_of_the_update() -> None:
    bowl = Bowl()
    clean = SAM()(bowl.landscape(0))
    for p in bowl.params:
        p.grad = torch.full_like(p, 7.0)
    for a, b in zip(SAM()(bowl.landscape(0)), clean, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_what_was_peeked_at_is_handed_over_once() -> None:
    bowl = Bowl()
    at = bowl.landscape(0)
    seen = at.peek()
    assert at.peek() is seen and bowl.passes == 1
    assert at.gradient() is seen and bowl.passes == 1
    assert at.gradient() is not seen and bowl.passes == 2


def test_a_look_does_not_answer_for_other_data_or_another_point() -> None:
    bowl = Bowl()
    at = bowl.landscape(0)
    seen = at.peek()
    with at.perturbed(Vector([torch.ones_like(p) for p in bowl.params])):
        assert at.gradient() is not seen
    chosen = at.select([torch.tensor([0, 1])]).gradient()
    assert not torch.equal(chosen[0], seen[0])  # type: ignore[arg-type]


class Two(Engine):
    """A second process whose loss is 3 larger than this one's."""

    def average_(self, tensors: Sequence[Tensor]) -> None:
        for t in tensors:
            t += 1.5


def test_the_mean_loss_is_over_processes() -> None:
    bowl = Bowl()
    update = Update(
        params=bowl.params,
        backward=bowl.backward,
        perturbable=Selection([True] * 4),
        engine=Two(),
    )
    at = Landscape.of(update, Data.by_examples([bowl.batch(0)]))
    at.gradient()
    assert at.loss is not None
    assert float(at.mean_loss()) == pytest.approx(float(at.loss) + 1.5)


def test_what_was_handed_over_says_so() -> None:
    bowl = Bowl()
    at = bowl.landscape(0)
    eps = at.gradient()
    with at.perturbed(eps):
        with pytest.raises(AssertionError, match=r"handed over.*clone\(\) it before"):
            eps.norms()
        assert repr(eps) == "Vector(handed over)"


KINDS = [torch.float32, torch.float64, torch.bfloat16]


def test_norms_products_and_sums_of_mixed_kinds() -> None:
    a = Vector([*(torch.full((3,), float(i + 1)).to(k) for i, k in enumerate(KINDS)), None])
    b = Vector([*(torch.full((3,), 2.0).to(k) for k in KINDS), None])
    assert float(a.norm()) == pytest.approx((3 * (1 + 4 + 9)) ** 0.5)
    assert [n is None for n in a.norms()] == [False, False, False, True]
    assert float(a.dot(b)) == pytest.approx(3 * 2 * (1 + 2 + 3))
    summed = a + b * 0.5
    assert [t[0].item() for t in summed if t is not None] == [2.0, 3.0, 4.0]
    assert [t.dtype for t in summed if t is not None] == KINDS
    assert float((a * -2.0).norm()) == pytest.approx(2 * float(a.norm()))


def test_a_norm_that_is_known_follows_scaling_and_forgets_changes() -> None:
    v = Vector([torch.tensor([3.0, 4.0])])
    assert float(v.norm()) == 5.0
    assert float(v.mul_(-2.0).norm()) == 10.0
    assert float(v.mul_(torch.tensor(0.5)).norm()) == 5.0
    assert float(v.add_(Vector([torch.tensor([3.0, 4.0])])).norm()) == 0.0
    assert float(v.where_(torch.tensor(False), Vector([torch.ones(2)])).norm()) == pytest.approx(
        2**0.5
    )


def test_a_single_example_is_all_there_is() -> None:
    assert Data.by_examples([torch.zeros(1, 2)]).shares == [1.0]
    assert Data.by_examples([torch.zeros(0, 2), torch.zeros(1, 2)]).shares == [0.0, 1.0]
    assert Data.by_examples([torch.zeros(0, 2)]).shares == [0.0]


def test_shares_of_groups_add_up() -> None:
    x = [torch.zeros(5, 2), torch.zeros(3, 2)]
    data = Data.by_examples(x)
    for count in (1, 2, 3, 8, 20, None):
        groups = data.groups(count)
        assert sum(g.share for g in groups) == pytest.approx(1.0)
        assert sum(len(b) for g in groups for b in g.batches) == 8
    half = data.beginnings(0.5)
    assert [len(b) for b in half.batches] == [3, 2] and half.share == pytest.approx(1.0)
    some = data.select([torch.tensor([4]), torch.tensor([0, 1])])
    assert [len(b) for b in some.batches] == [1, 2] and some.share == pytest.approx(1.0)


def test_a_look_does_not_answer_for_more_than_it_saw() -> None:
    bowl = Bowl()
    at = bowl.landscape(0)
    at.peek()
    at.gradient(with_losses=True)
    assert [len(losses) for losses in at.losses] == [6] and bowl.passes == 2
    at = bowl.landscape(0)
    whole = at.peek()
    assert not torch.equal(at.ascent(SAM(ascent_fraction=0.5))[0], whole[0])  # type: ignore[arg-type]
