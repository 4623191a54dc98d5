# SPDX-License-Identifier: Apache-2.0
"""In the tail u = g(w + eps), eps along the gradient of each micro-batch's first examples."""

import math
from typing import Any

import numpy as np

from tests.references.by_hand import ByHand
from tests.references.question import Question


class tail_sam:
    def __init__(
        self, rho: float = 0.01, fraction: float = 0.25, start: float | str = "decay"
    ) -> None:
        self.rho, self.fraction, self.start = rho, fraction, start

    def __call__(self, q: Question) -> np.ndarray:
        late = q.lr_ratio < 1 if self.start == "decay" else q.step / q.total >= self.start
        if not late:
            return q.gradient(q.w)
        first = [i for b in q.batches for i in b[: math.ceil(self.fraction * len(b))]]
        up = (q.part(first) if q.part else q.gradient)(q.w) * q.mask
        return q.gradient(q.w + self.rho * q.lr_ratio * up / np.linalg.norm(up))


OPTIONS: list[dict[str, Any]] = [
    {"rho": 0.3, "fraction": 0.4},
    {"rho": 0.3, "fraction": 1.0, "start": 0.25},
]
BY_HAND = [  # SAM's example at a learning rate that never falls, and SAM with a share of 1
    ByHand(options={"rho": 0.05}, weights=[(0.9, 0.0)]),
    ByHand(
        options={"rho": 0.05, "start": 0.0},
        eps=[(0.0098058068, 0.0490290338)],
        weights=[(0.8990194193, -0.0490290338)],
    ),
]
