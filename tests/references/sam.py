# SPDX-License-Identifier: Apache-2.0
"""u = g(w + rho g / |g|)."""

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class sam:
    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w) * q.mask
        return q.gradient(q.w + self.rho * g / np.linalg.norm(g))


BY_HAND = [
    ByHand(eps=[(0.0098058068, 0.0490290338)], weights=[(0.8990194193, -0.0490290338)]),
]
