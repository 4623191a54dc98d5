# SPDX-License-Identifier: Apache-2.0
"""The barrier between two solutions: how much the loss rises on the way from one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..vector import Vector
from .measures import Loss, Surface, model_loss
from .slices import Slice


@dataclass(frozen=True)
class Barrier:
    """The result of `barrier`.

    Attributes:
        height: the largest rise of the loss above the straight line between both ends' losses; zero
            or less means that the solutions are linearly connected.
        at: where, from 0 (the first solution) to 1 (the second).
        line: the losses along the way.
    """

    height: float
    at: float
    line: Slice


def barrier(
    first: nn.Module,
    second: nn.Module,
    batches: Sequence[Any],
    loss: Loss = model_loss,
    *,
    points: int = 11,
    progress: bool = False,
) -> Barrier:
    """Return the barrier between two solutions of the same architecture, in eval mode.

    It is the maximum over t of loss((1 - t) first + t second) - (1 - t) loss(first) - t
    loss(second) (Frankle et al., ICML 2020, arXiv 1912.05671). Floating-point buffers, such as the
    statistics of batch norm, are mixed in the same way.

    Args:
        first: a model on the batches' device; unchanged afterwards.
        second: a model with the same parameters and buffers; only read.
        batches: see `Surface`.
        loss: see `Surface`.
        points: how many values of t, both ends among them.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the models differ in their trained parameters or buffers, or too few points.
    """
    if points < 3:
        raise ValueError(f"points={points}: give both ends and something between them, 3 or more")
    surface = Surface(first, batches, loss)
    other = dict(second.named_parameters()) | dict(second.named_buffers())
    _check(surface, other)
    way = Vector(
        other[name].detach().to(p) - p.detach()
        for name, p in zip(surface.names, surface.params, strict=True)
    )
    distances = [i / (points - 1) for i in range(points)]
    losses = []
    with surface.bar("barrier", points, progress):
        for t in distances:
            with _mixed_buffers(first, other, t):
                losses.append(surface.loss_at(way * t))
    rises = [
        value - (1 - t) * losses[0] - t * losses[-1]
        for t, value in zip(distances, losses, strict=True)
    ]
    highest = max(range(points), key=rises.__getitem__)
    return Barrier(rises[highest], distances[highest], Slice(distances, losses))


def _check(surface: Surface, other: dict[str, Tensor]) -> None:
    mine: dict[str, Tensor] = dict(zip(surface.names, surface.params, strict=True))
    mine |= dict(surface.model.named_buffers())
    for name, value in mine.items():
        found = other.get(name)
        if found is None or found.shape != value.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise ValueError(
                f"second: {name} is {shape}, and in first of shape {tuple(value.shape)}: give two "
                "models of the same architecture"
            )


@contextmanager
def _mixed_buffers(model: nn.Module, other: dict[str, Tensor], t: float) -> Iterator[None]:
    kept = {
        name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()
    }
    buffers = dict(model.named_buffers())
    try:
        with torch.no_grad():
            for name, before in kept.items():
                buffers[name].lerp_(other[name].to(before), t)
        yield
    finally:
        with torch.no_grad():
            for name, before in kept.items():
                buffers[name].copy_(before)
