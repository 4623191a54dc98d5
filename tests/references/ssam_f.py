# SPDX-License-Identifier: Apache-2.0
"""u = g(w + mask * rho g / |g|), mask: where single examples' squared gradients are largest."""

import math
from typing import Any

import numpy as np
import torch

from tests.references.generator import generator
from tests.references.question import Question


class ssam_f:
    def __init__(
        self,
        rho: float = 0.05,
        sparsity: float = 0.5,
        fisher_samples: int = 128,
        update_interval: int | None = None,
        pattern: str = "unstructured",
    ) -> None:
        self.rho, self.sparsity, self.n, self.pattern = rho, sparsity, fisher_samples, pattern
        self.interval = update_interval
        self.mask: np.ndarray | None = None
        self.renewed = 0

    def fisher(self, q: Question) -> np.ndarray:
        drawn = torch.randint(1000, (self.n,), generator=generator(q.seed, q.step)).tolist()
        return sum(q.other(i)(q.w) ** 2 for i in drawn)

    def renew(self, q: Question) -> np.ndarray:
        """The next mask, of the weights that have gradients and, after them, of the idle ones."""
        may = np.append(q.mask, np.ones_like(q.idle))
        scores = np.append(self.fisher(q), np.zeros_like(q.idle))
        live = int(may.sum()) - math.ceil(self.sparsity * may.sum())
        mask = np.zeros_like(scores)
        if self.pattern == "unstructured":
            order = [i for i in np.argsort(-scores, kind="stable") if may[i]]
            mask[order[:live]] = 1
            return mask
        places = [place for _, place, _ in q.pieces] + [slice(len(q.w), len(scores))]
        places = [place for place in places if may[place].all()]
        if self.pattern == "structured":
            for place in sorted(places, key=lambda place: -scores[place].mean()):
                if mask.sum() < live:
                    mask[place] = 1
            return mask
        keep, group = map(int, self.pattern.split(":"))
        for _, place, shape in q.pieces:
            inputs = shape[1] if len(shape) > 1 else 1
            for row in range(place.start, place.stop, inputs):
                for first in range(row, row + inputs, group):
                    run = range(first, min(first + group, row + inputs))
                    mask[sorted(run, key=lambda i: -scores[i])[:keep]] = 1
            if len(shape) == 1:
                mask[place] = 1
        return mask

    def __call__(self, q: Question) -> np.ndarray:
        if self.mask is None or q.step - self.renewed >= (self.interval or q.total):
            self.mask, self.renewed = self.renew(q), q.step
        g = q.gradient(q.w) * q.mask
        eps = self.rho * g / np.linalg.norm(g) * self.mask[: len(q.w)]
        return q.gradient(q.w + eps)


DEFAULTS: list[dict[str, Any]] = []
OPTIONS: list[dict[str, Any]] = [
    {"fisher_samples": 4},
    {"fisher_samples": 4, "sparsity": 0.8, "update_interval": 3},
    {"fisher_samples": 4, "update_interval": 3, "pattern": "structured"},
    {"fisher_samples": 4, "update_interval": 3, "pattern": "2:4"},
]
