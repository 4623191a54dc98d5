# SPDX-License-Identifier: Apache-2.0
"""Whether a loss honours `num_items_in_batch`: asked of the loss itself, not of a signature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .replay import Replay


def honours_num_items(
    loss_of: Callable[[Tensor], Tensor], n: Tensor, replay: Replay
) -> bool | None:
    """Return whether the loss halves when the number of items doubles; None where it cannot be
    told.

    Args:
        loss_of: the `()` loss of one and the same batch for a given number of items.
        n: number of items, `()`.
        replay: makes both evaluations see the same random numbers, and leave no trace.
    """
    losses = []
    for items in (n, 2 * n):
        with torch.no_grad(), replay.no_trace():
            losses.append(float(loss_of(items)))
    once, twice = losses
    if not math.isfinite(once) or not math.isfinite(twice) or abs(once) < 1e-8:
        return None
    return abs(twice - once) > 1e-3 * abs(once)
