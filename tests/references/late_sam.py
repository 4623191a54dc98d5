# SPDX-License-Identifier: Apache-2.0
"""Nothing before the share `start` of the run, SAM from there on."""

import numpy as np

from tests.references.question import Question


class late_sam:
    def __init__(self, rho: float = 0.05, start: float = 0.75) -> None:
        self.rho, self.start = rho, start

    def __call__(self, q: Question) -> np.ndarray:
        g = q.gradient(q.w)
        if q.step / q.total < self.start:
            return g
        g = g * q.mask
        return q.gradient(q.w + self.rho * g / np.linalg.norm(g))
