# SPDX-License-Identifier: Apache-2.0
"""SAM where |g|^2 >= mu + c sigma, plain elsewhere; c goes from lambda_2 to lambda_1."""

from typing import Any

import numpy as np

from tests.references.question import Question


class ae_sam:
    def __init__(
        self,
        rho: float = 0.05,
        delta: float = 0.9,
        lambda_1: float = -1.0,
        lambda_2: float = 1.0,
    ) -> None:
        self.rho, self.delta, self.ends = rho, delta, (lambda_2, lambda_1)
        self.mu: float | None = None
        self.variance = 0.0

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        square = float(g @ g)
        self.mu = square if self.mu is None else self.mu
        self.mu = self.delta * self.mu + (1 - self.delta) * square
        self.variance = self.delta * self.variance + (1 - self.delta) * (square - self.mu) ** 2
        x = q.step / q.total
        if square < self.mu + ((1 - x) * self.ends[0] + x * self.ends[1]) * self.variance**0.5:
            return g
        up = g * q.mask
        return q.gradient(q.w + self.rho * up / np.linalg.norm(up))


OPTIONS: list[dict[str, Any]] = [{"rho": 0.3, "delta": 0.5, "lambda_1": -0.5, "lambda_2": 0.5}]
