# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a share of the largest one of the run, now and in the updates to come."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ..landscape import Progress


def largest_rate(optimizer: Any) -> float:
    """Return the largest learning rate of an optimizer's groups now."""
    return max(_rates(optimizer.param_groups), default=0.0)


class RateShare:
    """Computes the learning rate relative to its maximum over the whole run.

    To find the maximum, a copy of the schedule runs ahead once. A rate that follows a metric can
    only be compared with its start and with the rates since then, and nobody can foresee it.

    Args:
        optimizer: the optimizer, whose groups have the rates.
        scheduler: the schedule, or None.
        total: the number of updates in the run.

    Attributes:
        warmup: the number of the update at which the rate reaches its maximum, if it only rises
            from now until then; otherwise 0.
    """

    def __init__(self, optimizer: Any, scheduler: Any, total: int) -> None:
        self._optimizer = optimizer
        rates = [_rates(optimizer.param_groups)]
        rates += [[float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]]
        rates += [[float(g.get("max_lr") or 0.0) for g in optimizer.param_groups]]  # OneCycleLR's
        self._first, ahead = _ahead(optimizer, scheduler, total)
        self._peaks = [max(own) for own in zip(*rates, *ahead, strict=True)]
        self._total = total
        self._shares = [self._share(rates) for rates in ahead]
        self.warmup = self._first + _rising(self._shares)

    def to_come(self, warmup: int) -> Iterator[Progress]:
        """Yield the positions of the updates to come; `lr_ratio` is NaN if it is unknown.

        Args:
            warmup: the number of updates of the warm-up.
        """
        shares = self._shares or [math.nan] * self._total
        for step, share in enumerate(shares, self._first):
            yield Progress(step, self._total, warmup, lr_ratio=share)

    def __call__(self) -> float:
        """Return the largest share over the groups, 0 to 1, or 0 if no group has a rate."""
        now = _rates(self._optimizer.param_groups)
        # Groups that a callback has added start at their maximum.
        self._peaks += now[len(self._peaks) :]
        self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=False)]
        return self._share(now)

    def _share(self, rates: list[float]) -> float:
        pairs = zip(rates, self._peaks, strict=False)
        return max((rate / peak for rate, peak in pairs if peak > 0), default=0.0)


def _rising(shares: list[float]) -> int:
    """Return the position of the maximum, or 0 if the shares do not only rise until there."""
    highest = max(shares, default=0.0)
    peak = next((i for i, share in enumerate(shares) if share == highest), 0)
    rises = all(a <= b for a, b in zip(shares[:peak], shares[1:], strict=False))
    return peak if rises else 0


def _rates(groups: list[dict[str, Any]]) -> list[float]:
    return [float(group["lr"]) for group in groups]


def _ahead(optimizer: Any, scheduler: Any, total: int) -> tuple[int, list[list[float]]]:
    """Return the number of the next update, and the rates of all updates to come.

    They come from a copy of the schedule without the weights.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(inner, torch.optim.lr_scheduler.LRScheduler):
        return 0, []
    bare = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.0)
    bare.defaults = dict(getattr(optimizer, "defaults", {}))
    owners = [inner.optimizer, optimizer, getattr(optimizer, "optimizer", optimizer)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a schedule that steps without its optimizer
            # A schedule changes a rate that is a tensor in place, so the copy needs its own.
            bare.param_groups = [
                {**copy.deepcopy({k: v for k, v in group.items() if k != "params"}), "params": []}
                for group in optimizer.param_groups
            ]
            # The memo makes the copy refer to the bare optimizer, so that no weights are copied.
            twin = copy.deepcopy(inner, {id(owner): bare for owner in owners})
            rates = []
            for _ in range(max(total - inner.last_epoch, 0)):
                rates.append(_rates(bare.param_groups))
                twin.step()
            return inner.last_epoch, rates
    except Exception:
        # The schedule cannot be copied or run ahead, so the rates of past updates must do.
        return 0, []
