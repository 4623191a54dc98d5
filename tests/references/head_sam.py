# SPDX-License-Identifier: Apache-2.0
"""u = g(w + rho g_H / |g_H|), with g_H the gradient of the output head's matrix alone."""

from typing import Any

import numpy as np

from tests.references.question import Question

HEAD = "second.weight"


class head_sam:
    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho

    def __call__(self, q: Question) -> np.ndarray:
        """Whatever may be perturbed: the head is chosen by its name."""
        place = next(place for name, place, _ in q.pieces if name == HEAD)
        g = np.zeros_like(q.w)
        g[place] = q.gradient(q.w)[place]
        return q.gradient(q.w + self.rho * g / np.linalg.norm(g))


OPTIONS: list[dict[str, Any]] = [{"rho": 0.4}]
