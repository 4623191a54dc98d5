# SPDX-License-Identifier: Apache-2.0
"""Noise that is drawn again instead of kept: normal deviates as a function of a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16
"""How many numbers are drawn at a time, so that they stay in the cache."""


def normal(like: Tensor, key: tuple[int, ...], shape: torch.Size | None = None) -> Tensor:
    """Return N(0, 1) deviates as a function of `key`, with the dtype and device of a tensor.

    Args:
        like: the tensor that gives the dtype and device.
        key: whole numbers.
        shape: the shape of the deviates; by default that of the tensor. A process that holds some
            rows of a parameter draws for all of it, so that it gets what one process would get.
    """
    shape = like.shape if shape is None else shape
    words = np.random.SeedSequence([number % (1 << 64) for number in key])
    wide = torch.promote_types(like.dtype, torch.float32)
    if like.device.type == "cpu":
        drawn = torch.from_numpy(_normal_numbers(shape.numel(), words, _quantiles(wide)))
    else:
        # Shifted by one bit, because `manual_seed` takes a signed integer.
        seed = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = None if like.is_meta else torch.Generator(like.device).manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device=like.device, dtype=wide)
    return drawn.view(shape).to(like.dtype)


def _normal_numbers(n: int, words: np.random.SeedSequence, quantiles: np.ndarray) -> np.ndarray:
    """Return n of the quantiles, each of them chosen by 16 random bits.

    torch's CPU generator takes three times as long, which is noticeable with a small model.
    """
    source, drawn = np.random.SFC64(words), np.empty(n, quantiles.dtype)
    for start in range(0, n, CHUNK):
        run = drawn[start : start + CHUNK]
        # A raw number has 64 bits, so it chooses four quantiles.
        bits = source.random_raw(-(-run.size // 4)).view(np.uint16)[: run.size]
        np.take(quantiles, bits, out=run, mode="clip")  # "raise" would buffer the output
    return drawn


@functools.cache
def _quantiles(dtype: torch.dtype) -> np.ndarray:
    """Return the normal distribution's quantiles at the midpoints of 65536 equal shares."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(middles).to(dtype).numpy()


class RemadeProduct(torch.autograd.Function):
    """The product x M' with a matrix M that is made anew in the backward pass, so it is not kept.

    M gets no gradient. `RemadeProduct.apply(x, make)` calls `make()`, which returns M, (out, in).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Return x M'."""
        ctx.make, ctx.kind = make, x.dtype
        return torch.nn.functional.linear(x, make())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Return g M, and no gradient for the function."""
        return (g @ ctx.make().to(g.dtype)).to(ctx.kind), None
