# SPDX-License-Identifier: Apache-2.0
"""gs = g(w + eps), across = g - (g.gs / gs.gs) gs; u = gs - alpha across."""

from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class gsam:
    def __init__(self, rho: float = 0.05, alpha: float = 0.4) -> None:
        self.rho, self.alpha = rho, alpha

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        along = g * q.mask
        gs = q.gradient(q.w + self.rho * along / np.linalg.norm(along))
        across = g - (g @ gs) / (gs @ gs) * gs
        return gs - self.alpha * across


OPTIONS: list[dict[str, Any]] = [{"rho": 0.2, "alpha": 0.7}]
BY_HAND = [
    ByHand(eps=[(0.0098058068, 0.0490290338)], weights=[(0.9021290724, -0.0496009791)]),
]
