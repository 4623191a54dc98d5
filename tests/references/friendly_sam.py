# SPDX-License-Identifier: Apache-2.0
"""m = decay m + (1 - decay) g, d = g - sigma m, u = g(w + rho d / |d|); the first d is g."""

from typing import Any

import numpy as np

from tests.references.question import Question


class friendly_sam:
    def __init__(self, rho: float = 0.05, sigma: float = 1.0, decay: float = 0.9) -> None:
        self.rho, self.sigma, self.decay = rho, sigma, decay
        self.m: np.ndarray | None = None

    def direction(self, g: np.ndarray) -> np.ndarray:
        if self.m is None:
            self.m = g
            return g
        self.m = self.decay * self.m + (1 - self.decay) * g
        return g - self.sigma * self.m

    def __call__(self, q: Question) -> np.ndarray:
        d = self.direction(q.gradient(q.w) * q.mask)
        return q.gradient(q.w + self.rho * d / np.linalg.norm(d))


OPTIONS: list[dict[str, Any]] = [
    {"sigma": 0.5, "decay": 0.6},
]
