# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a share of the largest one of the run."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch


class RateShare:
    """Tells how large the learning rate is now, relative to its maximum over the whole run.

    The schedule itself is asked for that maximum: a copy of it runs ahead, once. A rate that
    follows a metric can only be compared with its start and what was seen since.

    Args:
        optimizer: whose groups have the rates.
        scheduler: the schedule, or None.
        total: updates of the run.
    """

    def __init__(self, optimizer: Any, scheduler: Any, total: int) -> None:
        self._optimizer = optimizer
        rates = [_rates(optimizer.param_groups)]
        rates += [[float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]]
        rates += [[float(g.get("max_lr", 0.0)) for g in optimizer.param_groups]]  # OneCycleLR's
        rates += _ahead(optimizer, scheduler, total)
        self._peaks = [max(own) for own in zip(*rates, strict=True)]

    def __call__(self) -> float:
        """Return the largest share over the groups that move, 0 to 1; 0 where none does."""
        now = _rates(self._optimizer.param_groups)
        # Groups that a callback has added start at their maximum.
        self._peaks += now[len(self._peaks) :]
        self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=False)]
        shares = [rate / peak for rate, peak in zip(now, self._peaks, strict=False) if peak > 0]
        return max(shares, default=0.0)


def _rates(groups: list[dict[str, Any]]) -> list[float]:
    return [float(group["lr"]) for group in groups]


def _ahead(optimizer: Any, scheduler: Any, total: int) -> list[list[float]]:
    """Return the rates of each update to come, by a copy of the schedule without the weights."""
    inner = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(inner, torch.optim.lr_scheduler.LRScheduler):
        return []
    bare = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.0)
    bare.param_groups = [{**g, "params": []} for g in optimizer.param_groups]
    bare.defaults = dict(getattr(optimizer, "defaults", {}))
    owners = [inner.optimizer, optimizer, getattr(optimizer, "optimizer", optimizer)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a schedule that steps without its optimizer
            twin = copy.deepcopy(inner, {id(owner): bare for owner in owners})
            found = []
            for _ in range(max(total - inner.last_epoch, 0)):
                found.append(_rates(bare.param_groups))
                twin.step()
            return found
    except Exception:
        # A schedule that cannot be copied or run ahead; what is seen on the way must do.
        return []
