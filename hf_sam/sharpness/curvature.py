# SPDX-License-Identifier: Apache-2.0
"""The curvature of the loss: the largest eigenvalues of its Hessian, and the Hessian's trace.

Products with the Hessian are two backward passes here and not those of curvlinops 3.0.1, whose
forward mode over `jacrev` gets the weights of a LayerNorm wrong with torch 2.13 (a third of the
product's largest entry on a linear layer and a LayerNorm) and cannot go through fused attention.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .measures import Loss, Surface, evaluating, model_loss


@dataclass(frozen=True)
class Curvature:
    """The result of `curvature`.

    Attributes:
        eigenvalues: the largest of the Hessian, in falling order.
        trace: an estimate of the Hessian's trace, the sum of all eigenvalues.
        error: its standard error, 0 for one draw.
    """

    eigenvalues: tuple[float, ...]
    trace: float
    error: float


def curvature(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Loss = model_loss,
    *,
    top: int = 1,
    draws: int = 10,
    tolerance: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Curvature:
    """Return the largest eigenvalues of the loss's Hessian and an estimate of its trace.

    In eval mode on all batches together. Products of the Hessian with vectors come from two
    backward passes, the eigenvalues from scipy's Lanczos iteration over them, and the trace from
    Hutchinson's estimator. An iteration takes about 20 vectors of the model's size in memory.

    Args:
        model: on the batches' device; unchanged afterwards. Every operation of its loss has to have
            a second derivative; attention is computed without fused kernels, which have none.
        batches: see `Surface`.
        loss: see `Surface`.
        top: how many eigenvalues; 0 for none.
        draws: random vectors for the trace; 0 for none, and the trace is then not a number.
        tolerance: relative accuracy of the eigenvalues.
        seed: of the starting vector and of the draws.
        progress: whether to show a progress bar, over the draws of the trace.

    Raises:
        ValueError: scipy is missing, or as many eigenvalues as weights are asked for.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> half = lambda model, x: model(x).square().mean() / 2
        >>> batch = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
        >>> round(curvature(model, [batch], half, top=1).eigenvalues[0], 6)
        4.5
    """
    surface = Surface(model, batches, loss)
    draw = np.random.default_rng(seed)
    eigenvalues = _largest(surface, top, tolerance, draw) if top else ()
    products = []
    with surface.bar("trace", draws, progress):
        for _ in range(draws):
            v = draw.choice((-1.0, 1.0), _count(surface))
            products.append(float(v @ hessian_times(surface, v)))
    mean = statistics.fmean(products) if products else float("nan")
    error = statistics.stdev(products) / draws**0.5 if draws > 1 else 0.0
    return Curvature(eigenvalues, mean, error)


def _largest(
    surface: Surface, top: int, tolerance: float, draw: np.random.Generator
) -> tuple[float, ...]:
    if find_spec("scipy") is None:
        raise ValueError("eigenvalues need scipy: pip install 'hf-sam[report]'")
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = _count(surface)
    if not top < count:
        raise ValueError(f"top={top}: give fewer eigenvalues than the model's {count} weights")
    operator = LinearOperator(
        (count, count), matvec=lambda v: hessian_times(surface, v), dtype=np.float64
    )
    found = eigsh(
        operator,
        k=top,
        which="LA",
        tol=tolerance,
        v0=draw.standard_normal(count),
        return_eigenvectors=False,
    )
    return tuple(sorted(map(float, found), reverse=True))


def hessian_times(surface: Surface, v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the product of the loss's Hessian and a vector, both flat, in float64."""
    params = surface.params
    pieces = torch.from_numpy(np.asarray(v, dtype=np.float64).ravel()).split([
        p.numel() for p in params
    ])
    vector = [piece.reshape(p.shape).to(p) for piece, p in zip(pieces, params, strict=True)]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    with evaluating(surface.model), _twice_differentiable():
        for batch, share in surface:
            loss = share * surface.loss_of(surface.model, batch)
            for sum_, product in zip(total, _product(loss, params, vector), strict=True):
                if product is not None:
                    sum_ += product
    return torch.cat([t.cpu().ravel() for t in total]).numpy()


def _product(
    loss: Tensor, params: Sequence[Tensor], vector: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    first = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(first, vector, strict=True) if g is not None]
    along = sum((g * v).sum() for g, v in pairs)
    if not isinstance(along, Tensor) or not along.requires_grad:  # a loss that is linear
        return [None] * len(params)
    return torch.autograd.grad(along, params, allow_unused=True)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _count(surface: Surface) -> int:
    return sum(p.numel() for p in surface.params)
