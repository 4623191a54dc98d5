# SPDX-License-Identifier: Apache-2.0
"""Log values of the updates since the last log, which stay on the device until they are logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MEANS = ("sharpness", "perturbation_norm", "ascent_grad_norm", "grad_cosine", "ascent_loss")
COSINE_EVERY = 10
"""Updates between two readings of the cosine, each of which needs a walk over all weights."""


class RunningMeans:
    """Sums of the readings of updates, which `drain` turns into `sam/` log values.

    Values that are not finite, from a skipped update, are left out of the means.
    """

    def __init__(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        self._sums: dict[str, Tensor] = {}  # for each name, the sum and the number of values: (2,)
        self._updates = 0
        self._perturbed = 0

    def want_cosine(self, step: int) -> bool:
        """Return whether the update after `step` others should read the cosine.

        Every tenth one does, and the first perturbed one after a log.
        """
        return step % COSINE_EVERY == 0 or "grad_cosine" not in self._sums

    def add(self, readings: dict[str, Tensor]) -> None:
        """Add one update's readings, which are `()` tensors.

        An update without a perturbation counts as a plain one.
        """
        self._updates += 1
        if "perturbation_norm" not in readings:
            return
        self._perturbed += 1
        names = [name for name in (*MEANS, "skipped") if name in readings]
        device = readings[names[0]].device
        values = torch.stack([readings[name].detach().to(device, torch.float32) for name in names])
        finite = torch.isfinite(values)
        # In a row, so that all of them take as few operations as one.
        pairs = torch.stack([torch.where(finite, values, 0.0), finite.to(values)], dim=1)
        for name, pair in zip(names, pairs.unbind(), strict=True):
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def drain(self, average_: Callable[[Sequence[Tensor]], None]) -> dict[str, float]:
        """Return the log values, which are means over perturbed updates and ranks."""
        if not self._updates:
            return {}
        logs = {"sam/share_perturbed_updates": self._perturbed / self._updates}
        if self._perturbed:
            names = list(self._sums)
            # Stacked, so that the host waits for the device once.
            values = torch.stack([
                self._sums[name].to(self._sums[names[0]].device) for name in names
            ])
            average_([values])
            for name, (total, count) in zip(names, values.tolist(), strict=True):
                mean = total / count if count else math.nan
                logs[f"sam/{name}"] = total if name == "skipped" else mean
        self._start_over()
        return logs
