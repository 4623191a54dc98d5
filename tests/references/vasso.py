# SPDX-License-Identifier: Apache-2.0
"""d = (1 - theta) d + theta g, u = g(w + rho d / |d|); the first d is g."""

from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class vasso:
    def __init__(self, rho: float = 0.05, theta: float = 0.9) -> None:
        self.rho, self.theta = rho, theta
        self.d: np.ndarray | None = None

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w) * q.mask
        self.d = g if self.d is None else (1 - self.theta) * self.d + self.theta * g
        return q.gradient(q.w + self.rho * self.d / np.linalg.norm(self.d))


OPTIONS: list[dict[str, Any]] = [{"theta": 0.3, "rho": 0.2}]
BY_HAND = [
    ByHand(
        gradients=[(1.0, 5.0), (2.0, 4.0)],
        eps=[(0.0098058068, 0.0490290338), (0.0210230506, 0.0453655303)],
    ),
]
