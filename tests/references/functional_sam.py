# SPDX-License-Identifier: Apache-2.0
"""u = J(w + rho g / |g|)' C(w), with J the Jacobian of the outputs F and C the loss's slopes.

The toy's loss is the mean of |F - y|^2, whose slopes are proportional to F - y. So J(v)' C(w) is
the gradient at v for targets from which F(v) is as far away as F(w) is from y.
"""

from typing import Any

import numpy as np

from tests.references.question import Question


class functional_sam:
    def __init__(self, rho: float = 0.05) -> None:
        self.rho = rho

    def __call__(self, q: Question) -> np.ndarray:
        assert q.outputs is not None and q.aimed is not None
        g = q.gradient(q.w) * q.mask
        there = q.w + self.rho * g / np.linalg.norm(g)
        away = q.outputs(q.w) - q.targets
        return q.aimed(q.outputs(there) - away)(there)


OPTIONS: list[dict[str, Any]] = [{"rho": 0.4}]
