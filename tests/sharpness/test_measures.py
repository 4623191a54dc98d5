# SPDX-License-Identifier: Apache-2.0
"""Sharpness, slices and pictures: numbers known by hand, and nothing left behind."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hf_sam.sharpness import (
    Panel,
    Surface,
    draw,
    gradient_direction,
    loss_slice,
    random_direction,
    sharpness,
)
from hf_sam.vector import Vector
from tests.toys import bert


class Quadratic(nn.Module):
    """loss = (x^2 + 5 y^2) / 2 at (1, 1), whatever the data: gradient (1, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.y = nn.Parameter(torch.ones((), dtype=torch.float64))


def quadratic(model: nn.Module, batch: Tensor) -> Tensor:
    return batch.mean() * (model.x**2 + 5 * model.y**2) / 2


ONES = [torch.ones(4, dtype=torch.float64)]


def net() -> nn.Module:
    """Dropout and batch norm, which tell training mode from eval mode; one bias is frozen."""
    layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    model = nn.Sequential(*layers).double()
    layers[0].bias.requires_grad_(False)
    return model


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def data(sizes: tuple[int, ...] = (6, 2)) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2) for n in sizes]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_sharpness_of_a_quadratic(rho: float) -> None:
    """With g = (1, 5): loss(w + rho g/|g|) - loss(w) = rho |g| + rho^2 (1 + 125) / (2 * 26)."""
    measured = sharpness(Quadratic(), ONES, rho=rho, loss=quadratic)
    assert measured.sharpness == pytest.approx(rho * math.sqrt(26) + rho**2 * 63 / 26, abs=1e-12)
    assert measured.loss == pytest.approx(3.0, abs=1e-12)
    assert measured.gradient_norm == pytest.approx(math.sqrt(26), abs=1e-12)
    assert measured.rho == rho


def test_batches_count_by_their_examples() -> None:
    model, batches = net(), data()
    joined = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    split, whole = (sharpness(model, b, rho=0.3, loss=cross_entropy) for b in (batches, joined))
    assert split.sharpness == pytest.approx(whole.sharpness, abs=1e-12)
    assert split.loss == pytest.approx(whole.loss, abs=1e-12)


def test_a_step_against_the_gradient_would_lower_the_loss() -> None:
    surface = Surface(net(), data(), cross_entropy)
    direction = gradient_direction(surface)
    low, here, high = loss_slice(surface, direction, [-0.01, 0.0, 0.01]).losses
    assert low < here < high


def test_eval_mode_and_nothing_left_behind() -> None:
    """Modes, weights, statistics, gradients and the random stream are what they were."""
    model = net().train()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, random_state = snapshot(model), torch.get_rng_state()
    first, second = (sharpness(model, data_of_8, 0.5, cross_entropy) for data_of_8 in [data()] * 2)
    assert first == second, "dropout was active"
    torch.set_rng_state(random_state)
    surface = Surface(model, data(), cross_entropy)
    loss_slice(surface, random_direction(surface), [-1.0, 1.0])
    assert [m.training for m in model] == [True, False, True, True]
    assert same(model, before)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])


def test_the_random_stream_is_left_alone() -> None:
    model, batches = net(), data()
    before = torch.get_rng_state()
    sharpness(model, batches, 0.5, cross_entropy)
    surface = Surface(model, batches, cross_entropy)
    loss_slice(surface, random_direction(surface, seed=3), [0.5])
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_return_after_an_exception() -> None:
    model, calls = net(), []
    before = snapshot(model)

    def failing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) == 5:  # two batches each for the gradient and the loss at w: now at w + eps
            raise RuntimeError("out of memory")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        sharpness(model, data(), 0.5, failing)
    assert same(model, before)
    assert model.training


def test_frozen_parameters_stay() -> None:
    surface = Surface(net(), data(), cross_entropy)
    assert "0.bias" not in surface.names
    assert len(surface.gradient()) == len(surface.params) == 5


def test_a_model_that_computes_its_own_loss() -> None:
    model = bert(dropout=0.5)
    batch = {"input_ids": torch.randint(0, 50, (8, 5)), "labels": torch.arange(8) % 2}
    measured = sharpness(model, [batch], rho=0.05)
    with torch.no_grad():
        assert measured.loss == pytest.approx(float(model.eval()(**batch).loss), abs=1e-6)
    assert measured.sharpness > 0


def test_no_gradient_no_sharpness() -> None:
    model = Quadratic()
    with torch.no_grad():
        model.x.zero_()
        model.y.zero_()
    assert sharpness(model, ONES, loss=quadratic).sharpness == 0.0
    with pytest.raises(ValueError, match=r"no direction: use random_direction"):
        gradient_direction(Surface(model, ONES, quadratic))


def test_a_gradient_that_is_not_finite_is_not_called_flat() -> None:
    """The loss itself is finite: sqrt has an infinite slope at zero."""
    model = Quadratic()
    with torch.no_grad():
        model.x.zero_()
    measured = sharpness(model, ONES, loss=lambda m, b: m.x.sqrt() + b.mean())
    assert math.isnan(measured.sharpness)
    assert measured.loss == 1.0


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_no_length(rho: float) -> None:
    with pytest.raises(ValueError, match=rf"rho={rho} is not a length"):
        sharpness(Quadratic(), ONES, rho=rho, loss=quadratic)


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        sharpness(Quadratic(), [], loss=quadratic)
    with pytest.raises(ValueError, match="no trainable parameter"):
        sharpness(Quadratic().requires_grad_(False), ONES, loss=quadratic)
    with pytest.raises(ValueError, match=r"\['input_ids'\]: add 'labels'"):
        sharpness(bert(), [{"input_ids": torch.zeros(2, 3, dtype=torch.long)}])


def test_slice_of_a_quadratic() -> None:
    """Along x alone: ((1 + t)^2 + 5) / 2."""
    surface = Surface(Quadratic(), ONES, quadratic)
    direction = Vector([torch.ones((), dtype=torch.float64), None])
    along = loss_slice(surface, direction, [-1, 0, 1])
    assert along.distances == [-1.0, 0.0, 1.0]
    assert along.losses == pytest.approx([2.5, 3.0, 4.5], abs=1e-12)
    assert direction[0] == 1.0, "the direction was consumed"


def test_gradient_direction_has_unit_length_and_the_steepest_slope() -> None:
    surface = Surface(net(), data(), cross_entropy)
    direction = gradient_direction(surface)
    assert float(direction.norm()) == pytest.approx(1.0, abs=1e-12)
    low, high = loss_slice(surface, direction, [-1e-5, 1e-5]).losses
    assert (high - low) / 2e-5 == pytest.approx(float(surface.gradient().norm()), rel=1e-6)


def test_random_direction_is_filter_normalised() -> None:
    surface = Surface(nn.Conv2d(2, 3, 3).double(), data(), cross_entropy)
    weight, bias = surface.params
    drawn, of_bias = random_direction(surface, seed=1)
    for filter_of_direction, filter_of_weights in zip(drawn, weight, strict=True):
        assert torch.isclose(filter_of_direction.norm(), filter_of_weights.norm())
    assert torch.equal(of_bias, torch.zeros_like(bias))
    assert torch.equal(random_direction(surface, seed=1)[0], drawn)
    assert not torch.equal(random_direction(surface, seed=2)[0], drawn)


def test_random_direction_scales_with_the_weights() -> None:
    """So that w -> c w, which a following norm layer undoes, gives the same picture."""
    surface = Surface(net(), data(), cross_entropy)
    before = random_direction(surface)[0]
    with torch.no_grad():
        surface.params[0].mul_(10.0)
    assert torch.allclose(random_direction(surface)[0], 10.0 * before)


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        (Vector([torch.ones(2), None]), "shapes"),
        (Vector([None]), "shapes"),
        (Vector([torch.tensor(math.inf), None]), "not finite"),
    ],
)
def test_a_direction_that_does_not_fit(direction: Vector, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loss_slice(Surface(Quadratic(), ONES, quadratic), direction, [1.0])


def panel(runs: int = 2, points: int = 3) -> Panel:
    lines = {method: [[float(i)] * points for i in range(runs)] for method in ("none", "sam")}
    return Panel("title", "x", "y", range(3), lines, mark=1.0)


@pytest.mark.parametrize("panels", [1, 3])
def test_draw(panels: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = draw([panel()] * panels, tmp_path / "new" / "picture.png", "title")
    height, width, _ = imread(path).shape
    assert width > 500 and height > 500
    assert imread(path).std() > 0.05, "an empty picture"


def test_draw_refuses_lines_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'none' has 4 values, but x has 3 points"):
        draw([panel(points=4)], tmp_path / "picture.png")
    with pytest.raises(ValueError, match="panels is empty"):
        draw([], tmp_path / "picture.png")


def test_draw_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"hf-sam\[plot\]"):
        draw([panel()], tmp_path / "picture.png")
