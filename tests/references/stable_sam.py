# SPDX-License-Identifier: Apache-2.0
"""u = |g| / (|gs| + 1e-12) gs with gs = g(w + rho g / |g|)."""

import numpy as np

from tests.references.question import Question


class stable_sam:
    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        up = g * q.mask
        gs = q.gradient(q.w + self.rho * up / np.linalg.norm(up))
        return np.linalg.norm(g) / (np.linalg.norm(gs) + 1e-12) * gs
