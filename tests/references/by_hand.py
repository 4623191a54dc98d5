# SPDX-License-Identifier: Apache-2.0
"""Examples that were worked out on paper, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Pair = Sequence[float]


@dataclass(frozen=True)
class ByHand:
    """Updates of a method on f(w) = w'Aw / 2 with A = diag(1, 10), from w = (1, 0.5).

    Attributes:
        options: of the method.
        gradients: of each update, in place of Aw; the weights then stay where they are.
        eps: the perturbation of each update's second pass.
        weights: after each update of gradient descent at a learning rate of 0.1.
    """

    options: dict[str, Any] = field(default_factory=dict)
    gradients: Sequence[Pair] | None = None
    eps: Sequence[Pair] = ()
    weights: Sequence[Pair] = ()
