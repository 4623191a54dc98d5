# SPDX-License-Identifier: Apache-2.0
"""u = g(w + mask * rho g / |g|), mask: random, then its least weights are exchanged for others."""

import math
from typing import Any

import numpy as np
import torch

from tests.references.generator import generator
from tests.references.question import Question


class ssam_d:
    def __init__(
        self,
        rho: float = 0.05,
        sparsity: float = 0.5,
        drop_rate: float = 0.5,
        drop: str = "gradient",
        growth: str = "random",
        update_interval: int | None = None,
    ) -> None:
        self.rho, self.sparsity, self.rate = rho, sparsity, drop_rate
        self.drop, self.growth, self.interval = drop, growth, update_interval
        self.mask: np.ndarray | None = None
        self.renewed = 0

    def random(self, q: Question) -> np.ndarray:
        """A number per weight, tensor by tensor, for those that may be perturbed."""
        numbers = generator(q.seed, q.step)
        scores = []
        for _, place, _ in q.pieces:
            size = place.stop - place.start
            may = q.mask[place].all()
            scores.append(torch.rand(size, generator=numbers) if may else torch.zeros(size))
        drawn = torch.cat([*scores, torch.rand(len(q.idle), generator=numbers)])
        return np.floor(drawn.numpy() * 2**15)  # the first of equal scores comes first

    def renew(self, q: Question) -> np.ndarray:
        may = np.append(q.mask, np.ones_like(q.idle))
        g = np.append(np.abs(q.gradient(q.w)), np.zeros_like(q.idle))
        total = int(may.sum())
        live = total - math.ceil(self.sparsity * total)
        mask = np.zeros(len(may))
        if self.mask is None:
            by = self.random(q)
            mask[sorted(np.flatnonzero(may), key=lambda i: -by[i])[:live]] = 1
            return mask
        x = q.step / q.total
        exchanged = int(live * self.rate * (1 + math.cos(math.pi * x)) / 2)
        exchanged = min(exchanged, total - live)
        keep_by = g if self.drop == "gradient" else np.abs(np.append(q.w, q.idle))
        grow_by = g if self.growth == "gradient" else self.random(q)
        on = [i for i in np.flatnonzero(may) if self.mask[i]]
        off = [i for i in np.flatnonzero(may) if not self.mask[i]]
        mask[sorted(on, key=lambda i: -keep_by[i])[: live - exchanged]] = 1
        mask[sorted(off, key=lambda i: -grow_by[i])[:exchanged]] = 1
        return mask

    def __call__(self, q: Question) -> np.ndarray:
        if self.mask is None or q.step - self.renewed >= (self.interval or q.total):
            self.mask, self.renewed = self.renew(q), q.step
        g = q.gradient(q.w) * q.mask
        eps = self.rho * g / np.linalg.norm(g) * self.mask[: len(q.w)]
        return q.gradient(q.w + eps)


OPTIONS: list[dict[str, Any]] = [
    {"sparsity": 0.8, "update_interval": 3},
    {"update_interval": 2, "drop": "weight", "growth": "gradient", "drop_rate": 0.9},
]
