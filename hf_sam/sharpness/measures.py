# SPDX-License-Identifier: Apache-2.0
"""How sharp the loss is around the weights of a model, on given batches and in eval mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..landscape import Landscape
from ..vector import Vector

Loss = Callable[[nn.Module, Any], Tensor]


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the `()` loss that a Hugging Face model computes itself; the batch has labels."""
    loss = model(**batch).loss
    if loss is None:
        raise ValueError(
            "the model returned no loss for a batch with the keys "
            f"{sorted(batch)}: add 'labels', or pass loss=f with f(model, batch) -> () tensor"
        )
    return loss


class Surface:
    """The mean loss of a model on fixed batches, in eval mode, as a function of its weights.

    The weights, the gradients, and the training or eval mode of each module are restored after each
    evaluation. Batches are weighted by their number of examples.

    Args:
        model: the model, on the batches' device.
        batches: the batches, in any form that `loss` accepts.
        loss: a function `f(model, batch)` that returns the batch's mean loss of shape (); by
            default the model's own loss.

    Raises:
        ValueError: there is no batch, or no trainable parameter.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], loss: Loss = model_loss) -> None:
        if not batches:
            raise ValueError("batches is empty: the loss needs at least one batch of examples")
        self.model = model
        self.loss_of = loss
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("model has no trainable parameter: unfreeze some with requires_grad_")
        self.names = [name for name, _ in named]
        self.params = [p for _, p in named]
        self._tick: Callable[[], None] = lambda: None
        self.at = Landscape(self.params, batches, self._backward, names=self.names)

    def _backward(self, batch: Any, share: Any = 1.0, **_: bool) -> Tensor:
        loss = share * self.loss_of(self.model, batch)
        loss.backward()
        self._tick()
        return loss.detach()

    def loss(self) -> float:
        """Return the mean loss where the weights stand, computed without a graph."""
        with evaluating(self.model), torch.no_grad():
            return float(sum(share * self.loss_of(self.model, batch) for batch, share in self))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield each batch with its share of the examples."""
        for batch, share in zip(self.at.data.batches, self.at.data.shares, strict=True):
            yield batch, share
            self._tick()

    def gradient(self) -> Vector:
        """Return the gradient of the mean loss where the weights stand."""
        with evaluating(self.model), _without_gradients(self.params):
            return self.at.gradient()

    def loss_at(self, displacement: Vector) -> float:
        """Return the mean loss at w + displacement; the displacement is consumed."""
        with self.at.perturbed(displacement):
            return self.loss()

    def gradient_at(self, displacement: Vector) -> Vector:
        """Return the gradient at w + displacement; the displacement is consumed."""
        with evaluating(self.model), _without_gradients(self.params):
            with self.at.perturbed(displacement):
                return self.at.gradient()

    @contextmanager
    def bar(self, title: str, passes: int, shown: bool) -> Iterator[None]:
        """Show a progress bar over so many passes over the batches, if it is wanted."""
        if not shown:
            yield
            return
        from rich.progress import Progress

        with Progress() as progress:
            task = progress.add_task(title, total=float(passes * len(self.at.data.batches)))
            self._tick = lambda: progress.advance(task)
            try:
                yield
            finally:
                self._tick = lambda: None


@dataclass(frozen=True)
class Sharpness:
    """The result of `sharpness`.

    Attributes:
        sharpness: loss(w + rho g/|g|) - loss(w).
        loss: loss(w).
        gradient_norm: |g|, the L2 norm over all trainable parameters.
        rho: length of the step, weight-space L2 norm.
    """

    sharpness: float
    loss: float
    gradient_norm: float
    rho: float


def sharpness(
    model: nn.Module,
    batches: Sequence[Any],
    rho: float = 0.05,
    loss: Loss = model_loss,
    *,
    steps: int = 1,
    adaptive: bool = False,
    progress: bool = False,
) -> Sharpness:
    """Return how much the loss rises within the radius rho, in the worst direction that is found.

    In eval mode on all batches together. With one step it is loss(w + rho g/|g|) - loss(w), which
    SAM descends; more steps climb further along the surface, projected onto the ball of radius rho,
    and the highest of their points counts. It is zero where the gradient is zero, and not a number
    where the gradient is not finite.

    Args:
        model: on the batches' device; unchanged afterwards.
        batches: see `Surface`.
        rho: the radius, weight-space L2 norm; with `adaptive` of the relative displacement eps/|w|.
        loss: see `Surface`.
        steps: ascent steps. Each takes a gradient over all batches.
        adaptive: whether displacements are measured in units of each weight's absolute value, so
            that rescaling layers changes nothing (Kwon et al., ICML 2021; Andriushchenko et al.,
            ICML 2023, arXiv 2302.07011).
        progress: whether to show a progress bar.

    Raises:
        ValueError: rho negative or not finite, no step, no batch, or no trainable parameter.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> squares = lambda model, x: model(x).square().mean()
        >>> found = sharpness(model, [torch.ones(2, 1)], rho=0.5, loss=squares)
        >>> found.loss, found.sharpness
        (1.0, 1.25)
    """
    check_radius(rho)
    if steps < 1:
        raise ValueError(f"steps={steps}: give at least one ascent step")
    surface = Surface(model, batches, loss)
    with surface.bar("sharpness", 2 * steps + 1, progress):
        return _climb(surface, rho, steps, adaptive)


def _climb(surface: Surface, rho: float, steps: int, adaptive: bool) -> Sharpness:
    unit = Vector(p.detach().abs() for p in surface.params) if adaptive else None
    gradient = surface.gradient()
    norm = float(gradient.norm())
    here = surface.loss()
    worst = 0.0
    z: Vector | None = None  # the displacement in its unit
    for step in range(steps):
        along = gradient if unit is None else gradient * unit
        length = float(along.norm())
        if not math.isfinite(length):  # a Landscape would not step at all
            return Sharpness(math.nan, here, norm, rho)
        if length == 0.0:
            break
        # Steps of twice the share reach the sphere, and turn along it.
        size = rho if steps == 1 else 2 * rho / steps
        z = along.mul_(size / length) if z is None else z.add_(along, size / length)
        z = z.mul_(min(1.0, rho / max(float(z.norm()), 1e-300)))
        there = surface.loss_at(z.clone() if unit is None else z * unit)
        worst = max(worst, there - here) if step else there - here
        if step + 1 < steps:
            gradient = surface.gradient_at(z.clone() if unit is None else z * unit)
    return Sharpness(worst, here, norm, rho)


def check_radius(rho: float) -> None:
    """Refuse a radius that is no length.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not 0.0 <= rho < math.inf:
        raise ValueError(
            f"rho={rho} is not a length: choose a finite number from 0.0 on, e.g. 0.05"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for the block, and back into its own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _without_gradients(params: Sequence[Tensor]) -> Iterator[None]:
    """Remove all gradients for the block, and put them back after it."""
    kept = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(params, kept, strict=True):
            p.grad = grad
