# SPDX-License-Identifier: Apache-2.0
"""The loss along a line through the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..vector import Vector
from .measures import Surface


@dataclass(frozen=True)
class Slice:
    """Losses along a line.

    Attributes:
        distances: t, in units of the direction.
        losses: loss(w + t direction), one for each distance.
    """

    distances: list[float]
    losses: list[float]


def loss_slice(surface: Surface, direction: Vector, distances: Sequence[float]) -> Slice:
    """Return loss(w + t direction) for each t, in eval mode; the weights come back as they were.

    Args:
        surface: the loss on fixed batches.
        direction: aligned with the surface's parameters; not consumed.
        distances: the values of t.

    Raises:
        ValueError: the direction does not fit the surface's parameters, or is not finite.
    """
    _check(surface, direction)
    losses = [surface.loss_at(direction * t) for t in distances]
    return Slice([float(t) for t in distances], losses)


def gradient_direction(surface: Surface) -> Vector:
    """Return g/|g|, in which SAM perturbs; distances along it are weight-space L2 norms.

    Raises:
        ValueError: the gradient is zero or not finite, so that it has no direction.
    """
    gradient = surface.gradient()
    norm = float(gradient.norm())
    if not 0.0 < norm < float("inf"):
        raise ValueError(
            f"the gradient has norm {norm}, so it has no direction: use random_direction"
        )
    return gradient.mul_(1.0 / norm)


def random_direction(surface: Surface, seed: int = 0) -> Vector:
    """Return a filter-normalised Gaussian direction; distances are relative to the weights.

    Each filter (slice along the first dimension) has the L2 norm of the filter of the weights that
    it is added to, so that solutions of different scale compare; tensors with fewer than two
    dimensions (biases, norm layers) get zero. (Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018,
    arXiv 1712.09913.)

    Args:
        surface: whose weights give the norms.
        seed: the direction before normalisation is a function of it and of the parameters' shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    return Vector(_filter_normalised(p.detach(), generator) for p in surface.params)


def _filter_normalised(weight: Tensor, generator: torch.Generator) -> Tensor:
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    filters = tuple(range(1, weight.ndim))
    drawn_norms, norms = (
        torch.linalg.vector_norm(tensor, dim=filters, keepdim=True) for tensor in (drawn, weight)
    )
    return drawn / drawn_norms.clamp_(min=torch.finfo(drawn.dtype).tiny) * norms


def _check(surface: Surface, direction: Vector) -> None:
    wanted = [tuple(p.shape) for p in surface.params]
    found = [None if d is None else tuple(d.shape) for d in direction]
    if len(found) != len(wanted) or any(
        f is not None and f != w for f, w in zip(found, wanted, strict=True)
    ):
        raise ValueError(
            f"direction has the shapes {found[:4]}..., the parameters {wanted[:4]}...: "
            "take it from gradient_direction or random_direction of the same model"
        )
    if not bool(torch.isfinite(direction.norm())):
        raise ValueError("direction is not finite, so no loss lies along it")
