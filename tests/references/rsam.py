# SPDX-License-Identifier: Apache-2.0
"""v = noise + lam g(w + noise), u = g(w + rho v / |v|)."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tests.references.question import Question


def deviates(seed: int, step: int, index: int, n: int) -> list[float]:
    """The n normal numbers of a tensor: 16 random bits, lowest first, name a quantile."""
    source = np.random.SFC64(np.random.SeedSequence([seed, step, index]))
    numbers: list[int] = []
    while len(numbers) < n:
        word = int(source.random_raw())
        numbers += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return [NormalDist().inv_cdf((number + 0.5) / 65536) for number in numbers[:n]]


class rsam:
    def __init__(self, rho: float = 0.05, sigma: float = 0.0025, lam: float = 2.0) -> None:
        self.rho, self.sigma, self.lam = rho, sigma, lam

    def noise(self, q: Question) -> np.ndarray:
        scale = self.sigma * (0.6 - 0.4 * math.cos(math.pi * q.step / q.total))
        noise = np.zeros_like(q.w)
        for i, (_, place, shape) in enumerate(q.pieces):
            w = q.w[place].reshape(shape)
            rows = [w] if len(shape) == 1 else list(w)
            norms = [np.full(row.size, np.linalg.norm(row)) for row in rows]
            drawn = np.array(deviates(q.seed, q.step, i, w.size))
            noise[place] = scale * np.concatenate(norms) * drawn
        return noise * q.mask

    def __call__(self, q: Question) -> np.ndarray:
        noise = self.noise(q)
        v = noise + self.lam * q.gradient(q.w + noise) * q.mask
        return q.gradient(q.w + self.rho * v / np.linalg.norm(v))


OPTIONS: list[dict[str, Any]] = [
    {"sigma": 0.1, "lam": 0.3},
]
