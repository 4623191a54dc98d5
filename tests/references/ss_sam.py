# SPDX-License-Identifier: Apache-2.0
"""SAM where the update's coin falls below p(t / T), else nothing."""

import math
from typing import Any

import numpy as np
import torch

from tests.references.question import Question


def coin(seed: int, step: int) -> float:
    """The uniform number of an update: the first of torch's generator at this mixture of both."""
    mixture = (0x2545F4914F6CDD1D * seed + 0x9E3779B97F4A7C15 * step + 0xC0FFEE) & ((1 << 63) - 1)
    generator = torch.Generator()
    generator.manual_seed(mixture)
    return float(torch.rand(1, generator=generator, dtype=torch.float64))


class ss_sam:
    def __init__(
        self,
        rho: float = 0.05,
        schedule: str = "linear",
        p_start: float = 0.0,
        p_end: float = 1.0,
        switch: float = 0.5,
    ) -> None:
        self.rho, self.schedule = rho, schedule
        self.a, self.b, self.switch = p_start, p_end, switch

    def probability(self, x: float) -> float:
        if self.schedule == "constant":
            return self.a
        if self.schedule == "piecewise":
            return self.a if x < self.switch else self.b
        if self.schedule == "linear":
            return self.a * (1 - x) + self.b * x
        return self.a + (self.b - self.a) * math.sin(math.pi * x / 2) ** 2

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        if coin(q.seed, q.step) >= self.probability(q.step / q.total):
            return g
        g = g * q.mask
        return q.gradient(q.w + self.rho * g / np.linalg.norm(g))


OPTIONS: list[dict[str, Any]] = [
    {"schedule": "constant", "p_start": 0.5},
    {"schedule": "piecewise", "p_start": 0.3, "p_end": 0.9, "switch": 0.4},
    {"schedule": "trigonometric", "p_start": 1.0, "p_end": 0.2},
]
