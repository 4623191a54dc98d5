# SPDX-License-Identifier: Apache-2.0
"""The mean rise of the loss over random displacements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..vector import Vector
from .measures import Loss, Surface, check_radius, model_loss


@dataclass(frozen=True)
class AverageSharpness:
    """The result of `average_sharpness`.

    Attributes:
        sharpness: the mean of loss(w + eps) - loss(w) over the draws.
        error: its standard error, 0 for one draw.
        loss: loss(w).
        rho: length of each displacement.
        draws: how many displacements.
    """

    sharpness: float
    error: float
    loss: float
    rho: float
    draws: int


def average_sharpness(
    model: nn.Module,
    batches: Sequence[Any],
    rho: float = 0.05,
    loss: Loss = model_loss,
    *,
    draws: int = 10,
    adaptive: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> AverageSharpness:
    """Return how much the loss rises on average at the distance rho, in random directions.

    A displacement is Gaussian and then scaled to the length rho; papers that give the standard
    deviation sigma of each weight mean about rho = sigma sqrt(n) for n weights. A random direction
    in a large model is nearly flat, so this needs a far larger rho than `sharpness`.

    Args:
        model: on the batches' device; unchanged afterwards.
        batches: see `Surface`.
        rho: length of the displacement, weight-space L2 norm; with `adaptive` of eps/|w|.
        loss: see `Surface`.
        draws: how many displacements.
        adaptive: whether each weight's displacement is multiplied by its absolute value.
        seed: the displacements are a function of it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: rho negative or not finite, no draw, no batch, or no trainable parameter.
    """
    check_radius(rho)
    if draws < 1:
        raise ValueError(f"draws={draws}: give at least one random displacement")
    surface = Surface(model, batches, loss)
    generator = torch.Generator().manual_seed(seed)
    rises = []
    with surface.bar("average sharpness", draws + 1, progress):
        here = surface.loss()
        for _ in range(draws):
            rises.append(surface.loss_at(_drawn(surface, rho, adaptive, generator)) - here)
    error = statistics.stdev(rises) / draws**0.5 if draws > 1 else 0.0
    return AverageSharpness(statistics.fmean(rises), error, here, rho, draws)


def _drawn(surface: Surface, rho: float, adaptive: bool, generator: torch.Generator) -> Vector:
    z = Vector(
        # On the CPU, so that every device draws the same.
        torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        for p in surface.params
    )
    z = z.mul_(rho / float(z.norm()))
    return z * Vector(p.detach().abs() for p in surface.params) if adaptive else z
