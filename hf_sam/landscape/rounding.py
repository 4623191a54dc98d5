# SPDX-License-Identifier: Apache-2.0
"""Rounding of `w + eps` to the dtype of the weights: to the nearest number, or by chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sweeps import Group

ROUNDING = ("nearest", "stochastic")
"""The values of `rounding`."""

BELOW = (1 << 16) - 1
"""The bits of a float32 number that bfloat16 leaves out."""


def check_rounding(
    rounding: str, params: Sequence[Tensor], names: Sequence[str] | None = None
) -> None:
    """Refuse weights for which stochastic rounding is not made.

    Raises:
        ValueError: a parameter is stored in float16, and the message names the first one; or there
            is no such rounding.
    """
    if rounding not in ROUNDING:
        raise ValueError(f"rounding={rounding!r} is not one of {', '.join(ROUNDING)}")
    for i, param in enumerate(params):
        if rounding == "stochastic" and param.dtype == torch.float16:
            name = f"parameter {i}" if names is None else repr(names[i])
            raise ValueError(
                f"sam_rounding='stochastic' is for weights stored in bfloat16, and {name} is "
                "stored in float16: load the model with dtype=torch.bfloat16 or torch.float32, or "
                "leave sam_rounding at 'nearest'"
            )


class Nearest:
    """Rounds each sum to the nearest number, as every operation of torch does.

    Attributes:
        bytes: what an element takes up in scratch memory, if that is more than its own size.
        exchanges: whether `eps + w`, in the storage of eps, is what `move_` makes of w.
    """

    bytes = 0
    exchanges = True

    def move_(self, group: Group, eps: list[Tensor]) -> None:
        """Add `eps` to the weights, which are the first pieces of a group."""
        torch._foreach_add_(group.pieces[0], eps)

    def sums_at(self, group: Group, index: Tensor, eps: Tensor, weights: Tensor) -> Tensor:
        """Return the sums of some weights and their eps, (K,), in the weights' dtype.

        Args:
            group: a group of pieces.
            index: the positions in the group to which the weights belong, (K,).
            eps: the perturbations, (K,).
            weights: the weights, (K,).
        """
        return (eps + weights).to(weights.dtype)


class Stochastic(Nearest):
    """Rounds each sum to one of its two neighbours in bfloat16, so that its expectation is exact.

    A perturbation is mostly smaller than the distance between neighbours, and the nearest number
    is then the weight itself. Here the perturbation is kept on average, with the noise of coins
    that come down on one of two sides. The coins are a function of the generator's state, of the
    parameter, and of the position in it: not of how a device walks over the weights.

    Args:
        generator: the source of one key per parameter.
        count: the number of parameters.

    Example:
        >>> coins = Stochastic(torch.Generator().manual_seed(0), 1)
        >>> w = torch.ones(10000, dtype=torch.bfloat16)
        >>> group = Group([0], [None], [[w]])
        >>> eps = torch.full_like(w, 1 / 1024)  # an eighth of the distance to the next number
        >>> bool((w + eps > w).any())
        False
        >>> coins.move_(group, [eps])
        >>> (w > 1).float().mean().round(decimals=2)
        tensor(0.1200)
    """

    bytes = 16
    exchanges = False

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self._keys = torch.randint(1 << 32, (count,), generator=generator).tolist()

    def move_(self, group: Group, eps: list[Tensor]) -> None:
        """Add `eps` to the weights as `Nearest.move_` does, rounded by coins."""
        weights = group.pieces[0]
        if weights[0].dtype != torch.bfloat16:
            super().move_(group, eps)
            return
        # Tensors in a row take few kernels; foreach kernels for two dtypes are slow.
        exact = _in_a_row(weights).float().add_(_in_a_row(eps))
        sizes = [w.numel() for w in weights]
        rounded = _rounded(exact, self._coins(group)).split(sizes)
        there = [r.view(w.shape) for r, w in zip(rounded, weights, strict=True)]
        torch._foreach_copy_(weights, there)

    def sums_at(self, group: Group, index: Tensor, eps: Tensor, weights: Tensor) -> Tensor:
        """Return the sums of some weights and their eps, rounded by the coins of their places."""
        if weights.dtype != torch.bfloat16:
            return super().sums_at(group, index, eps, weights)
        return _rounded(weights.float().add_(eps), self._coins(group).index_select(0, index))

    def _coins(self, group: Group) -> Tensor:
        """Return whole numbers from 0 to 65535 for all elements of a group in a row, as int32."""
        weights, end, first = group.pieces[0], 0, []
        for place, start, piece in zip(group.places, group.starts, weights, strict=True):
            # The element at `end` in the group is the one at `start` in its tensor.
            first.append(_signed(self._keys[place] + (start or 0) - end))
            end += piece.numel()
        coins = torch.arange(end, dtype=torch.int32, device=weights[0].device)
        torch._foreach_add_(list(coins.split([w.numel() for w in weights])), first)
        return _mixed_(coins).bitwise_and_(BELOW)


def _rounded(exact: Tensor, coins: Tensor) -> Tensor:
    """Return float32 numbers as bfloat16, rounded up if their lower bits and the coin carry over.

    Numbers that bfloat16 has, and NaN and infinity, stay what they are. It consumes `exact`.
    """
    bits = exact.view(torch.int32)
    bits.add_(coins).bitwise_and_(~BELOW)
    return exact.to(torch.bfloat16)


def _mixed_(numbers: Tensor) -> Tensor:
    """Turn int32 numbers, in place, into others that look random, one for each."""
    # Two rounds of shift and multiply, with Wellons's constants, which he found to mix well.
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        numbers.bitwise_xor_(numbers >> shift).mul_(_signed(factor))
    return numbers.bitwise_xor_(numbers >> 16)


def _signed(number: int) -> int:
    """Return the number between -2^31 and 2^31 that has the same lower 32 bits."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def _in_a_row(tensors: list[Tensor]) -> Tensor:
    """Return the elements of tensors of one dtype in a row, (N,)."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.cat([*map(_flat, tensors)])


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)
