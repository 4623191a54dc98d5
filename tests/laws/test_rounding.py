# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding of perturbed weights that are stored in bfloat16."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam import Landscape, Vector
from hf_sam.landscape.perturbation import Perturbation
from hf_sam.landscape.rounding import Stochastic
from hf_sam.sweeps import Group
from tests.laws.test_sweeps import shared
from tests.toys import assert_equal, logged, make_trainer, train, weights

BF16 = torch.bfloat16


def coins(seed: int = 0, count: int = 1) -> Stochastic:
    return Stochastic(torch.Generator().manual_seed(seed), count)


def stored(w: Tensor, eps: Tensor, rounding: Stochastic, place: int = 0) -> Tensor:
    there = w.clone()
    rounding.move_(Group([place], [None], [[there]]), [eps])
    return there


def neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of bfloat16 around x, (N,), and how near x is to the second, in float64.

    They are found by torch's rounding to the nearest, not by looking at bits.
    """
    near = x.to(BF16)
    way = torch.where(x.double() >= near.double(), math.inf, -math.inf).to(BF16)
    other = torch.nextafter(near, way).double()
    share = (x.double() - near.double()) / (other - near.double())
    return near.double(), other, share


def drawn(n: int, size: float) -> tuple[Tensor, Tensor]:
    """Return weights of about 0.05 and a perturbation of some size, in bfloat16."""
    draw = torch.Generator().manual_seed(1)
    w = (0.05 * torch.randn(n, generator=draw)).to(BF16)
    return w, (size * torch.randn(n, generator=draw)).to(BF16)


def test_each_sum_is_one_of_its_neighbours_and_exact_on_average() -> None:
    w, eps = drawn(2000, 1e-4)
    exact = w.float() + eps.float()
    near, other, share = neighbours(exact)
    draws = 400
    found = torch.stack([stored(w, eps, coins(seed)).double() for seed in range(draws)])
    assert ((found == near) | (found == other)).all()
    spread = (share * (1 - share)).clamp(min=0).sqrt() * (other - near).abs() / draws**0.5
    far = (found.mean(0) - exact.double()).abs() / spread.clamp(min=1e-30)
    assert far.max() < 5 and far[share > 0.01].mean() == pytest.approx(
        (2 / math.pi) ** 0.5, rel=0.1
    )


def test_the_cosine_is_what_theory_says() -> None:
    """A step of f u for a coin that comes up with probability f has the variance f (1 - f) u^2."""
    w, eps = drawn(200_000, 2e-5)
    near, other, share = neighbours(w.float() + eps.float())
    wanted = eps.double().square().sum()
    expected = (wanted / (wanted + (share * (1 - share) * (other - near).square()).sum())).sqrt()

    def cosine_and_share(there: Tensor) -> tuple[Tensor, Tensor]:
        step = there.double() - w.double()
        return (step @ eps.double()) / (step.norm() * wanted.sqrt()), step @ eps.double() / wanted

    cosine, kept = cosine_and_share(stored(w, eps, coins()))
    nearest, left = cosine_and_share(w + eps)
    assert cosine == pytest.approx(float(expected), rel=0.02)
    assert kept == pytest.approx(1.0, abs=0.02)
    # The nearest numbers keep the steps of weights near 0 only, and so no more than a quarter.
    assert left < 0.25 and 0.3 < nearest < 0.5


def test_what_needs_no_rounding_stays() -> None:
    """Also zeros of both signs, numbers that are not finite, the largest and the smallest one."""
    ends = [0.0, -0.0, math.inf, -math.inf, math.nan, 3.3895e38, -3.3895e38, 9.2e-41, -1e-38, 1.0]
    w = torch.cat([torch.tensor(ends).to(BF16), drawn(5000, 1.0)[0]])
    zero = torch.zeros_like(w)
    assert torch.equal(stored(w, zero, coins()).view(torch.int16), (w + zero).view(torch.int16))
    one = torch.ones(1000, dtype=BF16)
    assert (stored(one, one / 4, coins()) == 1.25).all()


def test_coins_are_fair_and_know_nothing_of_each_other() -> None:
    n = 1 << 16
    w = [torch.zeros(n), torch.zeros(n)]
    group = Group([0, 1], [None, None], [w])
    both = coins(count=2)._coins(group).double()
    assert both.min() >= 0 and both.max() < 1 << 16
    for bit in range(16):
        assert both.div(1 << bit).floor().remainder(2).mean() == pytest.approx(0.5, abs=0.01)
    bins = both.div(256).floor().long().bincount(minlength=256).double()
    assert ((bins - 512).square() / 512).sum() < 255 + 5 * (2 * 255) ** 0.5  # chi-square
    one, two = both.split(n)
    other = coins(seed=1, count=2)._coins(group).double().split(n)[0]
    pairs = [(one, two), (one, other), (one[1:], one[:-1]), (one[64:], one[:-64])]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / n**0.5


def test_coins_are_the_hash_of_their_places() -> None:
    """Worked out in numpy, whose casts from 64 to 32 bits keep the lower ones."""
    some = coins(count=2)
    places = np.concatenate([key + np.arange(n) for key, n in zip(some._keys, (5, 3), strict=True)])
    numbers = places.astype(np.int32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        numbers = ((numbers ^ (numbers >> shift)).astype(np.int64) * factor).astype(np.int32)
    wanted = (numbers ^ (numbers >> 16)) & 0xFFFF
    found = some._coins(Group([0, 1], [None, None], [[torch.zeros(5), torch.zeros(3)]]))
    assert found.tolist() == wanted.tolist()


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("name", shared())
def test_exact_return_whatever_the_memory(name: str) -> None:
    params = [nn.Parameter(t.to(BF16)) for t in shared()[name]]
    before = [p.detach().clone() for p in params]
    eps = [0.01 * torch.randn(p.shape).to(BF16) for p in params]
    at = Landscape(params, [1], lambda batch, share=1.0: torch.zeros(()), rounding="stochastic")
    with at.perturbed(Vector(eps)):
        assert name == "empty and single" or not torch.equal(params[0], before[0])
    assert all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))


def test_elements_keep_their_coins_however_they_are_walked_over() -> None:
    w, eps = drawn(3000, 1e-4)
    whole = stored(w, eps, coins())
    start = 700
    rest = w[start:].clone()
    coins().move_(Group([0], [start], [[rest]]), [eps[start:]])
    assert torch.equal(rest, whole[start:])
    index = torch.tensor([5, 1500, 2999])
    some = coins().sums_at(Group([0], [None], [[w]]), index, eps[index], w[index])
    assert torch.equal(some, whole[index])


def test_other_dtypes_lose_nothing() -> None:
    param, eps = nn.Parameter(torch.ones(3)), torch.full((3,), 1e-4)
    with Perturbation([param], [eps.clone()], torch.tensor(True), rounding=coins()):
        assert torch.equal(param.detach(), torch.ones(3) + eps)


def test_float16_is_refused_by_name() -> None:
    half = [torch.ones(2), torch.ones(2, dtype=torch.float16)]
    with pytest.raises(ValueError, match="'b' is stored in float16.*dtype=torch.bfloat16"):
        Landscape(half, [1], lambda batch, share=1.0: None, names=["a", "b"], rounding="stochastic")
    with pytest.raises(ValueError, match="rounding='up' is not one of nearest, stochastic"):
        Landscape(half, [1], lambda batch, share=1.0: None, rounding="up")


# -- in Trainer -----------------------------------------------------------------------------------


def test_a_training_repeats_itself_and_resumes(tmp_path: Path, caplog: Any) -> None:
    """Bit for bit; and nobody is told that perturbations are lost."""
    settings: dict[str, Any] = {
        "dtype": BF16,
        "sam_rounding": "stochastic",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        whole = train(tmp_path, **settings)
        again = train(tmp_path / "b", resume=str(tmp_path / "checkpoint-3"), **settings)
    assert_equal(weights(whole), weights(again))
    assert not [r for r in caplog.records if "rounds" in r.getMessage()]
    assert whole.sam_config["sam_rounding"] == "stochastic"
    nearest = train(tmp_path / "c", **{**settings, "sam_rounding": "nearest"})
    name = "sam/ascent_grad_norm"
    assert logged(nearest, name)[1:] != logged(whole, name)[1:]


def test_it_says_where_there_is_nothing_to_do(tmp_path: Path, caplog: Any) -> None:
    train(tmp_path, sam_rounding="stochastic", max_steps=1)
    assert (
        len([
            r for r in caplog.records if "sam_rounding='stochastic' has no effect" in r.getMessage()
        ])
        == 1
    )
    with pytest.raises(ValueError, match="is stored in float16"):
        train(tmp_path, sam_rounding="stochastic", dtype=torch.float16, max_steps=1)
    with pytest.raises(ValueError, match="sam_rounding='random' is not one of"):
        make_trainer(tmp_path, sam_rounding="random")


def test_rho_zero_is_the_plain_trainer(tmp_path: Path) -> None:
    common: dict[str, Any] = {"dtype": BF16, "max_steps": 4, "dropout": 0.1}
    sam = train(tmp_path, sam_rho=0.0, sam_rounding="stochastic", **common)
    plain = train(tmp_path, sam="none", **common)
    assert_equal(weights(sam), weights(plain))
    assert logged(sam) == logged(plain)
