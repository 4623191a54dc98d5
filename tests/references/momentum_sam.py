# SPDX-License-Identifier: Apache-2.0
"""u = g(w - rho m / |m|), then m = decay m + u; the first is plain."""

from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class momentum_sam:
    def __init__(self, rho: float = 3.0, decay: float = 0.9) -> None:
        self.rho, self.decay = rho, decay
        self.m: np.ndarray | None = None

    def __call__(self, q: Question) -> np.ndarray:
        if self.m is None:
            self.m = q.gradient(q.w)
            return self.m.copy()
        along = self.m * q.mask
        u = q.gradient(q.w - self.rho * along / np.linalg.norm(along))
        self.m = self.decay * self.m + u
        return u


OPTIONS: list[dict[str, Any]] = [{"rho": 0.3, "decay": 0.5}]
BY_HAND = [
    # plain to (0.9, 0); then m = (1, 5), and g = A (0.9 - 0.0098058068, -0.0490290338)
    ByHand(options={"rho": 0.05}, weights=[(0.9, 0.0), (0.8109805807, 0.0490290338)]),
]
