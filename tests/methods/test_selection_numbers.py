# SPDX-License-Identifier: Apache-2.0
"""Worked examples of the methods that choose examples or weights, computed outside hf_sam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import ESAM, METHODS, MSAM, SAM, Landscape, Plain, SparseSAMDynamic, SparseSAMFisher
from hf_sam.methods import asks
from hf_sam.methods.esam import most
from tests.methods.quadratic import LR, Quadratic, close
from tests.toys import Bowl


class TwoSamples:
    """l_i = (a_i w - y_i)^2 / 2 with a = (1, 0), (0, 2) and y = 0, 1 from w = (1, 1).

    Attributes:
        w: the weights.
        seen: w at each pass, and at each forward of `per_example`, so far.
    """

    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def __init__(self) -> None:
        self.w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.seen: list[Tensor] = []
        self.sizes: list[int] = []

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen.append(self.w.detach().clone())
        self.sizes.append(len(batch[1]))
        return 0.5 * (batch[0] @ self.w - batch[1]).square()

    def backward(self, batch: Any, share: Any = 1.0, with_losses: bool = False) -> Any:
        losses = self.losses(batch)
        (losses.mean() * share).backward()
        loss = (losses.mean() * share).detach()
        return (loss, losses.detach()) if with_losses else loss

    def at(self, batches: int = 1) -> Landscape:
        cut = list(zip(self.a.chunk(batches), self.y.chunk(batches), strict=True))
        per_example = torch.no_grad()(self.losses)
        return Landscape([self.w], cut, self.backward, names=["weight"], per_example=per_example)

    def update(self, method: Any, batches: int = 1) -> Tensor:
        self.seen = []
        u = method(self.at(batches))[0]
        assert u is not None
        return u

    def eps(self, i: int) -> Tensor:
        return self.seen[i] - self.w.detach()


class TestMSAM:
    def test_sam_on_both_at_once(self) -> None:
        two = TwoSamples()
        u = two.update(SAM(0.1))
        close(two.eps(1), [0.0447213595, 0.0894427191])
        close(u, [0.5223606798, 1.1788854382])
        close(two.w - LR * u, [0.947763932, 0.8821114562])

    @pytest.mark.parametrize("batches", [1, 2])
    def test_a_perturbation_for_each(self, batches: int) -> None:
        two = TwoSamples()
        at = two.at(batches)
        u = MSAM(0.1, micro_batches=2)(at)[0]
        close(two.eps(1), [0.1, 0.0])
        close(two.eps(3), [0.0, 0.1])
        close(u, [0.55, 1.2])
        close(two.w - LR * u, [0.945, 0.88])
        close(at.mean_loss(), 0.5)
        close(at.readings["perturbation_norm"], 0.1)

    @pytest.mark.parametrize("batches", [1, 2])
    def test_one_group_is_sam(self, batches: int) -> None:
        a, b = TwoSamples(), TwoSamples()
        assert torch.equal(
            a.update(MSAM(0.1, micro_batches=1), batches), b.update(SAM(0.1), batches)
        )


class TestESAM:
    def test_the_example_that_rises_most(self) -> None:
        two = TwoSamples()
        at = two.at()
        u = ESAM(0.1, beta=1.0, gamma=0.5)(at)[0]
        here, there = (two.losses((two.a, two.y)), at.losses[0])
        close(here, there.tolist())
        with torch.no_grad():
            two.w += two.eps(1)
            close(two.losses((two.a, two.y)) - here, [0.0457213595, 0.1948854382])
        close(u, [0.0, 2.3577708764])
        close(1 - LR * u, [1.0, 0.7642229124])
        assert two.sizes[:3] == [2, 2, 1], "both, both without a graph, one"

    def test_one_of_two_is_kept(self) -> None:
        """The published code's strict comparison keeps none."""
        assert most(torch.tensor([0.0457213595, 0.1948854382]), 0.5).tolist() == [1]

    def test_a_random_tensor(self) -> None:
        """|eps| = rho / beta over the chosen tensors, whichever they are."""
        q = Quadratic(split=True)
        found = set()
        for step in range(30):
            u = q.update(ESAM(beta=0.5, gamma=1.0), step)
            eps = q.eps(1)
            close(eps.norm(), 0.1)
            chosen = tuple(bool(x) for x in eps != 0)
            found.add(chosen)
            if chosen == (False, True):
                close(eps, [0.0, 0.1])
                close(q.w - LR * u, [0.9, -0.1])
        assert found == {(True, False), (False, True), (True, True)}

    @pytest.mark.parametrize(
        ("n", "gamma", "count"),
        [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (30, 0.1, 3), (8, 0.01, 1), (7, 0.999, 7)],
    )
    def test_how_many_are_kept(self, n: int, gamma: float, count: int) -> None:
        """ceil(gamma B), also where gamma B is a whole number that rounding misses."""
        values = torch.rand(n)
        kept = most(values, gamma)
        assert len(kept) == count and kept.tolist() == sorted(kept.tolist())
        assert values[kept].sort().values.tolist() == values.sort().values[n - count :].tolist()

    def test_the_first_among_equals(self) -> None:
        assert most(torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0]), 0.6).tolist() == [0, 2, 4]


class TestSparseSAM:
    def one_of_two(self, q: Quadratic, sparsity: float) -> Tensor:
        """SSAM-F; a drawn example's gradient is (1, 5), so the second weight is the live one."""
        method = SparseSAMFisher(0.05, sparsity=sparsity, fisher_samples=1)
        update = q.update(method, sample=lambda n, generator: [0] * n)
        assert torch.equal(q.seen[1], q.w), "the drawn example's pass is at w"
        return update

    def test_half_of_the_weights(self) -> None:
        q = Quadratic()
        u = self.one_of_two(q, 0.5)
        close(q.eps(2), [0.0, 0.0490290338])
        close(q.w - LR * u, [0.9, -0.0490290338])

    def test_all_and_none(self) -> None:
        q = Quadratic()
        assert torch.equal(self.one_of_two(q, 0.0), q.update(SAM(0.05)))
        u = self.one_of_two(q, 1.0)
        assert torch.equal(u, q.update(Plain()))
        close(q.w - LR * u, [0.9, 0.0])

    @pytest.mark.parametrize("sparsity", [0.0, 1.0])
    def test_the_dynamic_mask_too(self, sparsity: float) -> None:
        same = Plain() if sparsity else SAM(0.05)
        q = Quadratic()
        assert torch.equal(q.update(SparseSAMDynamic(sparsity=sparsity)), q.update(same))

    def test_the_mask_comes_before_the_first_perturbation(self) -> None:
        q = Quadratic()
        q.update(SparseSAMDynamic(sparsity=0.5))
        assert int((q.eps(1) != 0).sum()) == 1


@pytest.mark.parametrize("key", ["msam", "sam", "rsam", "stable_sam", "looksam", "friendly_sam"])
def test_the_ascent_on_a_part_of_the_batch(key: str) -> None:
    """ceil(f B) examples from the beginning of each micro-batch; the descent sees all."""
    options = {"micro_batches": 1} if key == "msam" else {}
    two = TwoSamples()
    two.update(METHODS[key](ascent_fraction=0.3, **options))
    assert two.sizes == [1, 2]
    if key == "sam":
        close(two.eps(1), [0.05, 0.0])


def test_sam_of_each_example_by_itself() -> None:
    """As many groups as examples, whatever the micro-batches, and known without counting them."""
    bowl = Bowl()
    found = [
        MSAM(0.3, micro_batches=groups)(bowl.landscape(batches=batches))
        for groups, batches in (("examples", 1), ("examples", 3), (6, 1))
    ]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    wanted = asks(MSAM(micro_batches="examples"), batches=1)
    assert wanted.groups == 1024 and wanted.passes == 2.0
    with pytest.raises(ValueError, match="micro_batches='example' is not one of examples, nor a"):
        MSAM(micro_batches="example")
