# SPDX-License-Identifier: Apache-2.0
"""Several steps, relative radii, random directions, curvature and barriers, against brute force."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hf_sam.sharpness import Surface, average_sharpness, barrier, curvature, sharpness
from hf_sam.sharpness.curvature import hessian_times
from hf_sam.vector import Vector
from tests.sharpness.test_measures import (
    ONES,
    Quadratic,
    cross_entropy,
    data,
    net,
    quadratic,
    same,
    snapshot,
)
from tests.toys import bert


def circle(count: int = 4_000) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / count for i in range(count)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def rise(x: float, y: float) -> float:
    """Of the quadratic around (1, 1)."""
    return ((1 + x) ** 2 + 5 * (1 + y) ** 2) / 2 - 3


class TestWorstCase:
    @pytest.mark.parametrize("rho", [0.3, 2.0])
    def test_many_steps_find_the_worst_point_of_the_ball(self, rho: float) -> None:
        worst = max(rise(rho * x, rho * y) for x, y in circle())
        found = sharpness(Quadratic(), ONES, rho, quadratic, steps=30)
        assert found.sharpness == pytest.approx(worst, rel=1e-3)
        one = sharpness(Quadratic(), ONES, rho, quadratic)
        assert one.sharpness < found.sharpness <= worst + 1e-9

    def test_a_relative_radius_is_an_ellipse(self) -> None:
        """At weights (2, 0.5) displacements are (2 a, 0.5 b) with a^2 + b^2 = rho^2."""
        model = Quadratic()
        with torch.no_grad():
            model.x.fill_(2.0)
            model.y.fill_(0.5)
        rho, here = 0.4, (4 + 5 * 0.25) / 2
        points = [(2 + 2 * rho * a, 0.5 + 0.5 * rho * b) for a, b in circle()]
        worst = max((x**2 + 5 * y**2) / 2 for x, y in points) - here
        found = sharpness(model, ONES, rho, quadratic, steps=30, adaptive=True)
        assert found.sharpness == pytest.approx(worst, rel=1e-3)
        # One step, by hand: rho T^2 g / |T g| with T = w and g = (2, 2.5).
        length = math.hypot(4.0, 1.25)
        x, y = 2 + rho * 8 / length, 0.5 + rho * 0.625 / length
        found = sharpness(model, ONES, rho, quadratic, adaptive=True)
        assert found.sharpness == pytest.approx((x**2 + 5 * y**2) / 2 - here, abs=1e-12)

    def test_a_rescaled_network_is_as_sharp_relatively(self) -> None:
        """ReLU is homogeneous: one layer times c and the next divided by c is the same function."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        model = model.double()
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight.mul_(10.0)
            other[2].weight.div_(10.0)
        how = {"rho": 0.3, "loss": cross_entropy, "steps": 3}
        batches = data()
        a, b = (sharpness(m, batches, adaptive=True, **how).sharpness for m in (model, other))
        assert a == pytest.approx(b, rel=1e-9)
        a, b = (sharpness(m, batches, **how).sharpness for m in (model, other))
        assert b > 2 * a

    def test_no_step_is_refused(self) -> None:
        with pytest.raises(ValueError, match="steps=0: give at least one"):
            sharpness(Quadratic(), ONES, loss=quadratic, steps=0)


class TestAverage:
    def test_it_is_the_mean_over_the_sphere(self) -> None:
        """Of a quadratic the linear part averages out: rho^2 (1 + 5) / 4 in two dimensions."""
        found = average_sharpness(Quadratic(), ONES, 0.5, quadratic, draws=400)
        assert abs(found.sharpness - 0.25 * 6 / 4) < 4 * found.error < 0.4
        assert found.loss == 3.0 and found.draws == 400

    def test_it_depends_on_the_seed_alone(self) -> None:
        model, batches = net(), data()
        before, random_state = snapshot(model), torch.get_rng_state()
        first, second, other = (
            average_sharpness(model, batches, 0.5, cross_entropy, draws=3, seed=s)
            for s in (0, 0, 1)
        )
        assert first == second != other
        assert same(model, before) and torch.equal(torch.get_rng_state(), random_state)

    def test_a_relative_displacement_leaves_zeros_alone(self) -> None:
        model = Quadratic()
        with torch.no_grad():
            model.y.zero_()
        found = average_sharpness(model, ONES, 1.0, quadratic, draws=50, adaptive=True)
        assert max(abs(found.sharpness), 0.0) < 1.5  # y would rise by up to 5 / 2
        with pytest.raises(ValueError, match="draws=0"):
            average_sharpness(model, ONES, 1.0, quadratic, draws=0)


class TestCurvature:
    def test_against_the_whole_hessian(self) -> None:
        model = net()
        batches = data()
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        params = dict(model.named_parameters())
        flat = torch.cat([params[n].detach().ravel() for n in names])
        model.eval()

        def loss(flat: Tensor) -> Tensor:
            pieces = flat.split([params[n].numel() for n in names])
            new = {n: p.reshape(params[n].shape) for n, p in zip(names, pieces, strict=True)}
            call = torch.func.functional_call
            outputs = [(call(model, new, x), y) for x, y in batches]
            sums = [nn.functional.cross_entropy(o, y, reduction="sum") for o, y in outputs]
            return sum(sums) / sum(len(y) for _, y in batches)

        hessian = torch.autograd.functional.hessian(loss, flat)
        model.train()
        before = snapshot(model)
        found = curvature(model, batches, cross_entropy, top=3, draws=50, tolerance=1e-9)
        expected = torch.linalg.eigvalsh(hessian).flip(0)[:3].tolist()
        assert found.eigenvalues == pytest.approx(expected, rel=1e-6)
        assert abs(found.trace - float(hessian.trace())) < 4 * found.error
        assert same(model, before) and model.training
        assert all(p.grad is None for p in model.parameters())

    def test_a_transformer_with_its_own_loss(self) -> None:
        """Its fused attention has no second derivative, so another one is used."""
        torch.manual_seed(0)
        batch = {"input_ids": torch.randint(0, 50, (8, 5)), "labels": torch.arange(8) % 2}
        found = curvature(bert(), [batch], top=1, draws=2)
        assert math.isfinite(found.trace) and found.eigenvalues[0] > 0

    def test_the_weights_of_a_layer_norm(self) -> None:
        """Against differences of the gradient: torch's forward mode gets them wrong in places."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double()
        surface = Surface(model, [torch.randn(6, 4).double()], lambda m, x: m(x).pow(3).mean())
        v = [torch.randn_like(p) for p in surface.params]
        step, flat = 1e-5, torch.cat([piece.ravel() for piece in v])
        there, here = (surface.gradient_at(Vector(v).clone().mul_(s)) for s in (step, -step))
        slope = torch.cat([(a - b).ravel() for a, b in zip(there, here, strict=True)]) / (2 * step)
        torch.testing.assert_close(torch.from_numpy(hessian_times(surface, flat.numpy())), slope)

    def test_a_linear_loss_is_flat(self) -> None:
        model = nn.Linear(2, 1, bias=False).double()
        inputs = [torch.ones(3, 2, dtype=torch.float64)]
        found = curvature(model, inputs, lambda m, x: m(x).mean(), top=0, draws=3)
        assert found.trace == 0.0 and found.eigenvalues == ()
        with pytest.raises(ValueError, match="top=2: give fewer eigenvalues than the model's 2"):
            curvature(model, inputs, lambda m, x: m(x).mean(), top=2)


class TestBarrier:
    def test_a_double_well(self) -> None:
        """(x^2 - 1)^2 between -1 and 1 has a barrier of 1 half-way."""
        first, second = Quadratic(), Quadratic()
        with torch.no_grad():
            first.x.fill_(-1.0)
        before = snapshot(first)
        found = barrier(first, second, ONES, lambda m, b: (m.x**2 - 1) ** 2 * b.mean())
        assert (found.height, found.at) == (pytest.approx(1.0, abs=1e-12), 0.5)
        assert len(found.line.losses) == 11 and same(first, before)

    def test_a_bowl_has_none(self) -> None:
        second = Quadratic()
        with torch.no_grad():
            second.x.fill_(3.0)
        assert barrier(Quadratic(), second, ONES, quadratic).height <= 0.0

    def test_both_ends_are_the_models_with_their_statistics(self) -> None:
        models = [net(), net()]
        for model in models:
            model(torch.randn(16, 3, dtype=torch.float64) * 5)  # moves the statistics
        batches = data()
        ends = [sharpness(m, batches, 0.0, cross_entropy).loss for m in models]
        before = snapshot(models[0])
        line = barrier(*models, batches, cross_entropy, points=3).line
        # The frozen bias is the first model's at both ends.
        models[1][0].bias.data.copy_(models[0][0].bias)
        ends[1] = sharpness(models[1], batches, 0.0, cross_entropy).loss
        assert line.losses[0] == ends[0]
        assert line.losses[2] == pytest.approx(ends[1], abs=1e-12)
        assert same(models[0], before)

    def test_what_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match="second: x is missing"):
            barrier(Quadratic(), nn.Linear(1, 1), ONES, quadratic)
        with pytest.raises(ValueError, match="points=2"):
            barrier(Quadratic(), Quadratic(), ONES, quadratic, points=2)


def test_a_progress_bar_counts_every_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown only if it is wanted, and reaches its end."""
    sharpness(net(), data(), 0.1, cross_entropy, steps=3)
    assert capsys.readouterr().out == ""
    sharpness(net(), data(), 0.1, cross_entropy, steps=3, progress=True)
    assert "sharpness" in (said := capsys.readouterr().out) and "100%" in said
    average_sharpness(net(), data(), 0.1, cross_entropy, draws=2, progress=True)
    barrier(net(), net(), data(), cross_entropy, progress=True)
    curvature(net(), data(), cross_entropy, top=0, draws=2, progress=True)
    assert capsys.readouterr().out.count("100%") == 3
