# SPDX-License-Identifier: Apache-2.0
"""a = gamma / (1 - gamma); u = (1 - a) g + a gs, or u = g and w -= lr a (gs - g)."""

from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class wsam:
    def __init__(self, rho: float = 0.05, gamma: float = 0.9, decoupled: bool = False) -> None:
        self.rho, self.a, self.decoupled = rho, gamma / (1 - gamma), decoupled

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        up = g * q.mask
        gs = q.gradient(q.w + self.rho * up / np.linalg.norm(up))
        if not self.decoupled:
            return (1 - self.a) * g + self.a * gs
        q.w -= q.rate * self.a * (gs - g)
        return g


OPTIONS: list[dict[str, Any]] = [{"gamma": 0.5, "rho": 0.3}, {"decoupled": True, "gamma": 0.6}]
BY_HAND = [
    ByHand(eps=[(0.0098058068, 0.0490290338)], weights=[(0.8911747739, -0.4412613041)]),
    ByHand(
        options={"gamma": 0.5},
        eps=[(0.0098058068, 0.0490290338)],
        weights=[(0.8990194193, -0.0490290338)],
    ),
]
