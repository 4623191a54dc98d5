# SPDX-License-Identifier: Apache-2.0
"""w* = w (1 +- s) for both factors of a pair, s = alpha eta, then the optimizer with g(w)."""

from typing import Any

import numpy as np

from tests.references.question import Question


class bar:
    def __init__(self, mu: float = 0.5, decay: str = "linear", balance: str = "gradients") -> None:
        self.mu, self.decay, self.balance = mu, decay, balance

    def __call__(self, q: Question) -> np.ndarray:
        g, x = q.gradient(q.w), q.step / q.total
        alpha = {"linear": 1 - x, "cosine": np.cos(np.pi * x / 2) ** 2, "constant": 1}[self.decay]
        s = self.mu * alpha * q.rate
        for a, b, _ in q.pairs:
            if q.mask[a].all() and q.mask[b].all():
                of = g if self.balance == "gradients" else q.w
                up = np.linalg.norm(of[b]) >= np.linalg.norm(of[a])
                up = up if self.balance == "gradients" else not up
                q.w[b] *= 1 + s if up else 1 - s
                q.w[a] *= 1 - s if up else 1 + s
        return g


OPTIONS: list[dict[str, Any]] = [
    {"mu": 5.0},
    {"mu": 5.0, "balance": "weights"},
    {"mu": 9.0, "decay": "cosine"},
    {"mu": 2.0, "decay": "constant", "balance": "weights"},
]
