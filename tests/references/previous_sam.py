# SPDX-License-Identifier: Apache-2.0
"""u = g(w + rho s / |s|) with the last update s; the first is plain."""

from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class previous_sam:
    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho
        self.last: np.ndarray | None = None

    def __call__(self, q: Question) -> np.ndarray:
        eps = np.zeros_like(q.w)
        if self.last is not None:
            along = self.last * q.mask
            eps = self.rho * along / np.linalg.norm(along)
        self.last = q.gradient(q.w + eps)
        return self.last


OPTIONS: list[dict[str, Any]] = [{"rho": 0.5}]
BY_HAND = [
    # plain to (0.9, 0); then s = (1, 5), |s| = 5.0990195136, and g = A (0.9 + 0.0098058068, ...)
    ByHand(weights=[(0.9, 0.0), (0.8090194193, -0.0490290338)]),
]
