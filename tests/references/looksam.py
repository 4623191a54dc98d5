# SPDX-License-Identifier: Apache-2.0
"""Every k: u = gs = g(w + eps), gv = gs - (gs.g / g.g) g; else u = g + alpha |g| / |gv| gv."""

from typing import Any

import numpy as np

from tests.references.question import Question


class looksam:
    def __init__(
        self, rho: float = 0.05, k: int = 5, alpha: float = 0.1, layerwise: str = "none"
    ) -> None:
        self.rho, self.k, self.alpha, self.layerwise = rho, k, alpha, layerwise
        self.t = 0
        self.gv: np.ndarray | None = None

    def perturbation(self, q: Question, g: np.ndarray) -> np.ndarray:
        g = g * q.mask
        if self.layerwise == "none":
            return self.rho * g / np.linalg.norm(g)
        eps = np.zeros_like(g)
        for _, place, _ in q.pieces:
            length = np.linalg.norm(g[place])
            if length > 0:
                reach = np.linalg.norm(q.w[place]) if self.layerwise == "trust" else 1.0
                eps[place] = self.rho * reach * g[place] / length
        return eps

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        refresh = self.t % self.k == 0
        self.t += 1
        if refresh:
            gs = q.gradient(q.w + self.perturbation(q, g))
            self.gv = gs - (gs @ g) / (g @ g) * g
            return gs
        return g + self.alpha * np.linalg.norm(g) / np.linalg.norm(self.gv) * self.gv


OPTIONS: list[dict[str, Any]] = [
    {"k": 3, "alpha": 0.7, "layerwise": "unit"},
    {"k": 3, "alpha": 0.7, "layerwise": "trust"},
]
