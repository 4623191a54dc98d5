# SPDX-License-Identifier: Apache-2.0
"""u = g at W + s B A + s B2 A2; B2, A2 climb by Adam, then |s B2 A2| is cut down to rho."""

from typing import Any

import numpy as np
import torch

from tests.references.generator import generator
from tests.references.question import Question


class bi_lora:
    def __init__(self, rho: float = 0.05, rank: int = 8, rule: str = "adam") -> None:
        self.rho, self.rank, self.rule = rho, rank, rule
        self.second: list[np.ndarray] = []
        self.moments = [[0.0, 0.0], [0.0, 0.0]]
        self.count = 0

    def begin(self, q: Question) -> None:
        outputs, inputs = q.base.shape
        draw = generator(q.seed, q.step)
        a = torch.empty(self.rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=draw)
        self.second = [a.double().numpy(), np.zeros((outputs, self.rank))]

    def step(self, i: int, g: np.ndarray) -> np.ndarray:
        if self.rule == "sgd":
            return g
        first, second = self.moments[i]
        self.moments[i] = [0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g]
        first = self.moments[i][0] / (1 - 0.9**self.count)
        second = self.moments[i][1] / (1 - 0.999**self.count)
        return first / (np.sqrt(second) + 1e-8)

    def __call__(self, q: Question) -> np.ndarray:
        (of_a, of_b, scale), *_ = q.pairs
        if not (q.mask[of_a].all() and q.mask[of_b].all()):
            return q.gradient(q.w)
        if not self.second:
            self.begin(q)
        a, b = self.second
        flat, dense = q.layer(q.w, scale * b @ a)
        self.count += 1
        gradients = [scale * b.T @ dense, scale * dense @ a.T]
        both = zip((a, b), gradients, strict=True)
        a, b = (t + q.rate * self.step(i, g) for i, (t, g) in enumerate(both))
        length = np.linalg.norm(scale * b @ a)
        factor = np.sqrt(self.rho / length) if length > self.rho else 1.0
        self.second = [a * factor, b * factor]
        return flat


OPTIONS: list[dict[str, Any]] = [
    {"rho": 0.5, "rank": 2},
    {"rho": 0.2, "rank": 3, "rule": "sgd"},
    {"rho": 100.0},
]
