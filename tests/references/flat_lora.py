# SPDX-License-Identifier: Apache-2.0
"""u = g at W' + noise, W' = W + s B A, noise_ij = sigma_t / sqrt(n) |W'_i| N(0, 1)."""

import math
from typing import Any

import numpy as np

from tests.references.question import Question
from tests.references.rsam import deviates


class flat_lora:
    def __init__(self, sigma: float = 0.05) -> None:
        self.sigma = sigma

    def __call__(self, q: Question) -> np.ndarray:
        (of_a, of_b, scale), *_ = q.pairs
        if q.step == 0 or not (q.mask[of_a].all() and q.mask[of_b].all()):
            return q.gradient(q.w)
        places = [place for _, place, _ in q.pieces]
        a, b = (q.w[at].reshape(q.pieces[places.index(at)][2]) for at in (of_a, of_b))
        whole = q.base + scale * b @ a
        sigma = self.sigma * (1 - math.cos(math.pi * q.step / q.total)) / 2
        z = np.array(deviates(q.seed, q.step, places.index(of_b), whole.size))
        z = z.reshape(whole.shape)
        size = sigma * np.linalg.norm(whole, axis=1, keepdims=True) / math.sqrt(whole.shape[1])
        return q.layer(q.w, size * z)[0]


OPTIONS: list[dict[str, Any]] = [{"sigma": 0.3}]
