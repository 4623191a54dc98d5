# SPDX-License-Identifier: Apache-2.0
"""Selection of the largest scores over all parameters, on any number of processes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sums import Numbers, add_up
from ..sweeps import sweep
from ..vector import WHOLE, Placement

Scores = Sequence[Tensor | None]
Masks = list[Tensor | None]
LARGEST = 0x7F7FFFFF
"""The bits of the largest float32 number."""


class OneByOne(Sequence[Tensor | None]):
    """Scores that are computed anew whenever they are looked at, so that none are kept.

    Args:
        count: the number of parameters.
        score: returns the scores of a parameter.
    """

    def __init__(self, count: int, score: Callable[[int], Tensor | None]) -> None:
        self._count, self._score = count, score

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Tensor | None:  # type: ignore[override]
        if i >= self._count:
            raise IndexError(i)  # which ends a loop over the scores
        return self._score(i)


def magnitudes(values: Scores, mask: Masks, on: bool) -> Scores:
    """Return the magnitudes of values, and -1, which is never chosen, where the mask is not `on`.

    They are computed when they are looked at, so that no set of scores takes up memory.
    """

    def score(i: int) -> Tensor | None:
        value, m = values[i], mask[i]
        if value is None or m is None:
            return None
        return value.abs().float().masked_fill_(~m if on else m, -1.0)

    return OneByOne(len(values), score)


def live_count(scores: Scores, sparsity: float, placement: Placement = WHOLE) -> int:
    """Return the number of weights that are perturbed, N - ceil(sparsity N)."""
    every = total(sizes(scores), placement)
    # The tolerance is relative to N, for products such as 0.07 * 100 = 7.000000000000001.
    return every - math.ceil(sparsity * every - 1e-9 * every)


def largest(scores: Scores, count: int, placement: Placement = WHOLE) -> Masks:
    """Return masks of the `count` largest scores over all tensors together.

    Among equal scores the first ones are chosen. Bisection over the non-negative float32 numbers
    finds the threshold from counts alone, so that nothing is sorted, and processes that hold rows
    exchange nothing but counts. Negative scores are never chosen, and scores that are not finite
    count as zero.
    """
    narrow = OneByOne(len(scores), lambda i: _narrow(scores[i]))
    # Non-negative floats are ordered as their bits are, so 31 steps over integers suffice.
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        reached = [None if s is None else torch.count_nonzero(s >= _float(middle)) for s in narrow]
        if total(reached, placement) >= count:
            low = middle
        else:
            high = middle - 1
    return _above(narrow, _float(low), count, placement)


def _above(scores: Scores, threshold: float, count: int, placement: Placement) -> Masks:
    """Return masks of `count` scores: those above the threshold, and the first that equal it."""
    masks = [None if s is None else s > threshold for s in scores]
    above = [None if m is None else torch.count_nonzero(m) for m in masks]
    ties = [None if s is None else torch.count_nonzero(s == threshold) for s in scores]
    missing = count - total(above, placement)  # so many of the ties are chosen, from the first on
    parts = zip(masks, placement.sums(ties), placement.before(ties), strict=True)
    for i, (mask, everywhere, before) in enumerate(parts):
        if mask is None or everywhere is None or before is None or missing <= 0:
            continue
        tie = torch.eq(scores[i], threshold)  # type: ignore[arg-type]
        if (n := int(everywhere)) > missing:
            # Ties in rows that other processes hold earlier come first.
            tie = _first(tie, missing - int(before))
        missing -= n
        mask |= tie
    return masks


def _first(mask: Tensor, count: int) -> Tensor:
    """Return the mask of the first `count` elements that are on, with bounded scratch memory."""
    flat = mask.flatten()
    for group in sweep([flat]):  # in groups, because `cumsum` takes 8 bytes for each element
        run = group.pieces[0][0]
        on = int(run.count_nonzero())
        if on > count:
            run &= run.cumsum(0) <= count
        count = max(count - on, 0)
    return flat.view(mask.shape)


def total(numbers: Numbers, placement: Placement) -> int:
    """Return the sum of whole numbers over all tensors and processes."""
    return int(add_up(placement.sums(numbers)))


def sizes(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return how many elements this process holds of each tensor, as `()` tensors."""
    return [None if t is None else torch.tensor(t.numel(), device=t.device) for t in tensors]


def _narrow(scores: Tensor | None) -> Tensor | None:
    """Return the scores as finite float32 numbers."""
    return None if scores is None else _finite(scores.float())


def _finite(scores: Tensor) -> Tensor:
    """Return the scores with zeros in place of those that are not finite."""
    # One sum finds NaN and infinity without a mask; the usual case needs no copy.
    return scores if bool(scores.sum().isfinite()) else scores.nan_to_num(0.0, 0.0, 0.0)


def _float(bits: int) -> float:
    """Return the float32 number that has these bits."""
    return float(struct.unpack("f", struct.pack("I", bits))[0])


def whole_tensors(scores: Scores, count: int, placement: Placement = WHOLE) -> Masks:
    """Return `()` masks of whole tensors, of which at least `count` weights are on.

    Tensors are switched on in the order of their mean scores, from the largest down.
    """
    finite = [None if s is None else s.nan_to_num(0.0, 0.0, 0.0).sum() for s in scores]
    sums: list[Any] = placement.sums(finite)
    counts: list[Any] = placement.sums(sizes(scores))
    means = {i: float(sums[i] / counts[i]) for i, s in enumerate(scores) if s is not None}
    masks: Masks = [
        None if s is None else torch.zeros((), dtype=torch.bool, device=s.device) for s in scores
    ]
    on = 0
    for i in sorted(means, key=means.__getitem__, reverse=True):
        if on >= count:
            break
        masks[i] = torch.ones_like(masks[i])  # type: ignore[arg-type]
        on += int(counts[i])
    return masks


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Return the mask of the n largest of every m consecutive scores along the second dimension.

    That dimension is a layer's input. A vector is on as a whole. If the size of the dimension is
    not a multiple of m, the last group is shorter.
    """
    if scores.ndim < 2:
        return torch.ones((), dtype=torch.bool, device=scores.device)
    rows = scores.transpose(1, -1).contiguous()
    length = rows.shape[-1]
    # Scores are not negative, so that the padding is chosen only if a group has too few weights.
    padded = torch.nn.functional.pad(rows, (0, -length % m), value=-1.0)
    groups = padded.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(n, dim=1).indices, True)
    kept = mask.view(padded.shape)[..., :length]
    return kept.transpose(1, -1).contiguous()
