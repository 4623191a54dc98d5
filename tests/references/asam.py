# SPDX-License-Identifier: Apache-2.0
"""u = g(w + rho T^2 g / |T g|), T = |w| + eta for tensors named *weight*, else 1."""

import numpy as np

from tests.references.question import Question


class asam:
    def __init__(self, rho: float = 0.5, eta: float = 0.01) -> None:
        self.rho, self.eta = rho, eta

    def __call__(self, q: Question) -> np.ndarray:
        t = np.ones_like(q.w)
        for name, place, _ in q.pieces:
            if "weight" in name:
                t[place] = np.abs(q.w[place]) + self.eta
        g = q.gradient(q.w) * q.mask
        return q.gradient(q.w + self.rho * t * t * g / np.linalg.norm(t * g))
