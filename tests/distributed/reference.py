# SPDX-License-Identifier: Apache-2.0
"""SAM with an ascent of each rank's own, slow and obvious: the mean of the ranks' SAM (mSAM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Gradient = list[Tensor | None]


def gradient(model: nn.Module, batches: Sequence[Batch]) -> Gradient:
    """Return the gradient of the mean of the batches' mean losses."""
    model.zero_grad()
    for batch in batches:
        output: Any = model(**batch)
        (output["loss"] / len(batches)).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def perturbation(model: nn.Module, here: Gradient, rho: float, eta: float | None) -> Gradient:
    """Return SAM's eps, or ASAM's if there is an eta."""
    scale = [
        p.detach().abs() + eta if eta is not None and "weight" in name else torch.ones_like(p)
        for name, p in model.named_parameters()
    ]
    pairs = [None if g is None else (t, g) for t, g in zip(scale, here, strict=True)]
    norm = sum(float((t * g).square().sum()) for t, g in filter(None, pairs)) ** 0.5
    return [None if pair is None else rho * pair[0].square() * pair[1] / norm for pair in pairs]


def sam_gradient(
    model: nn.Module, batches: Sequence[Batch], rho: float, eta: float | None = None
) -> tuple[Gradient, float]:
    """Return the gradient at w + eps, and the norm of the gradient at w."""
    here = gradient(model, batches)
    eps = perturbation(model, here, rho, eta)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, e in zip(model.parameters(), eps, strict=True):
            if e is not None:
                p.add_(e)
    there = gradient(model, batches)
    with torch.no_grad():
        for p, w in zip(model.parameters(), before, strict=True):
            p.copy_(w)
    norm = sum(float(g.square().sum()) for g in here if g is not None) ** 0.5
    return there, norm


def mean_over_ranks(gradients: Sequence[Gradient]) -> Gradient:
    """Return the mean, in which a missing gradient counts as zero unless all are missing."""
    means: Gradient = []
    for entries in zip(*gradients, strict=True):
        present = [g for g in entries if g is not None]
        means.append(sum(present) / len(entries) if present else None)  # type: ignore[arg-type]
    return means


def train(
    model: nn.Module,
    seen: Sequence[Sequence[Batch]],
    optimizer: torch.optim.Optimizer,
    accumulation: int,
    rho: float,
    eta: float | None = None,
    clip: float = 0.0,
) -> list[float]:
    """Train as several ranks with their own ascent do.

    Args:
        model: is changed.
        seen: per rank, every micro-batch in order.
        optimizer: of the model's parameters.
        accumulation: micro-batches of an update.
        rho: radius.
        eta: ASAM's, None for SAM.
        clip: largest norm of the averaged gradient, 0 for no limit.

    Returns:
        Per update, the mean over ranks of the norms of the ascent gradients.
    """
    norms = []
    for first in range(0, len(seen[0]), accumulation):
        update = [
            sam_gradient(model, batches[first : first + accumulation], rho, eta) for batches in seen
        ]
        mean = mean_over_ranks([g for g, _ in update])
        for p, g in zip(model.parameters(), mean, strict=True):
            p.grad = g
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        norms.append(sum(norm for _, norm in update) / len(update))
    return norms
