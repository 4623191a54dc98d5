# SPDX-License-Identifier: Apache-2.0
"""eps = rho / beta g_S / |g_S| on random tensors S, u = g there of the examples that rise most."""

import math
from typing import Any

import numpy as np
import torch

from tests.references.generator import generator
from tests.references.question import Question


class esam:
    def __init__(self, rho: float = 0.05, beta: float = 0.6, gamma: float = 0.5) -> None:
        self.rho, self.beta, self.gamma = rho, beta, gamma

    def tensors(self, q: Question) -> list[int]:
        """S: the tensors whose number falls below beta, or the one with the lowest."""
        number = generator(q.seed, q.step)
        tosses = torch.rand(len(q.pieces) + 1, generator=number, dtype=torch.float64).tolist()
        may = [i for i, (_, place, _) in enumerate(q.pieces) if q.mask[place].all()]
        may.append(len(q.pieces))  # the idle tensor takes part, too
        below = [i for i in may if tosses[i] < self.beta]
        return below or [min(may, key=lambda i: tosses[i])]

    def __call__(self, q: Question) -> np.ndarray:
        chosen = np.zeros_like(q.w)
        for i in self.tensors(q):
            if i < len(q.pieces):
                chosen[q.pieces[i][1]] = 1
        g = q.gradient(q.w) * chosen
        there = q.w + self.rho / self.beta * g / (np.linalg.norm(g) or 1.0)
        rise = q.losses(there) - q.losses(q.w)
        kept = []
        for batch in q.batches:
            count = math.ceil(self.gamma * len(batch))
            kept += sorted(batch, key=lambda i: -rise[i])[:count]
        return q.part(kept)(there)


OPTIONS: list[dict[str, Any]] = [
    {"beta": 1.0, "gamma": 0.6, "rho": 0.2},
    {"beta": 0.3, "gamma": 1.0},
]
