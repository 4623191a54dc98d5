# SPDX-License-Identifier: Apache-2.0
"""u = mean over the examples' groups j of g_j(w + rho g_j / |g_j|), weighted by their sizes."""

from typing import Any

import numpy as np

from tests.references.question import Question


class msam:
    def __init__(self, rho: float = 0.05, micro_batches: int = 4) -> None:
        self.rho, self.m = rho, micro_batches

    def __call__(self, q: Question) -> np.ndarray:
        rows = [i for batch in q.batches for i in batch]
        n, m = len(rows), min(self.m, len(rows))
        u = np.zeros_like(q.w)
        for j in range(m):
            group = rows[n * j // m : n * (j + 1) // m]
            gradient = q.part(group)
            g = gradient(q.w) * q.mask
            u += len(group) / n * gradient(q.w + self.rho * g / np.linalg.norm(g))
        return u


OPTIONS: list[dict[str, Any]] = [
    {"micro_batches": 2, "rho": 0.2},
    {"micro_batches": 1},
]
