# SPDX-License-Identifier: Apache-2.0
"""u = g(w + rho e) + g(w) - |g(w + rho e)| / |g(w - r e)| g(w - r e), e = g / |g|, r ~ lr."""

from typing import Any

import numpy as np

from tests.references.question import Question


class bilateral_sam:
    def __init__(self, rho: float = 0.05, rho_min: float = 0.05) -> None:
        self.rho, self.rho_min = rho, rho_min

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        e = g * q.mask / np.linalg.norm(g * q.mask)
        above = q.gradient(q.w + self.rho * e)
        below = q.gradient(q.w - self.rho_min * q.lr_ratio * e)
        return above + g - np.linalg.norm(above) / np.linalg.norm(below) * below


OPTIONS: list[dict[str, Any]] = [
    {"rho": 0.2, "rho_min": 0.1},
]
