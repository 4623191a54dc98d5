# SPDX-License-Identifier: Apache-2.0
"""Schedules that decide by what the training has shown so far: gradients and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..landscape import Landscape
from ..vector import Vector
from .schedule import SHARE, Schedule


@dataclass
class adaptive(Schedule):
    """AE-SAM's gate: updates whose squared gradient norm is large for its running mean and spread.

    Jiang et al., ICLR 2023, arXiv 2304.14647::

        mu      <- delta mu + (1 - delta) |g|^2
        sigma^2 <- delta sigma^2 + (1 - delta) (|g|^2 - mu)^2
        perturb iff |g|^2 >= mu + c sigma,  c from lambda_2 (start of the run) to lambda_1 (end)

    State: mu and sigma^2. The decision needs the gradient's norm on the host, which is one
    synchronisation per update. The averages start at the first finite |g|^2. An update whose |g|^2
    is not finite changes neither average and is not perturbed.
    """

    stateful = True
    needs_gradient = True

    delta: float = field(default=0.9, metadata={"help": "decay of both averages", **SHARE})
    lambda_1: float = field(default=-1.0, metadata={"help": "c at the end of the run"})
    lambda_2: float = field(default=1.0, metadata={"help": "c at the start of the run"})

    def __call__(self, at: Landscape) -> bool:
        """Return whether |g|^2 is large enough to perturb."""
        square = float(at.peek().norm()) ** 2  # peek: the method's first pass is this gradient
        if not math.isfinite(square):
            return False
        mu, variance = self.state.number("mu", square), self.state.number("variance", 0.0)
        # The spread is around the new mean, as in the paper.
        mu = self.delta * mu + (1 - self.delta) * square
        variance = self.delta * variance + (1 - self.delta) * (square - mu) ** 2
        self.state.update(mu=mu, variance=variance)
        x = at.progress.fraction
        return square >= mu + (x * self.lambda_1 + (1 - x) * self.lambda_2) * math.sqrt(variance)


@dataclass
class learning(Schedule):
    """Updates before which the loss has fallen below the share `share` of its first value.

    A model that has learned nothing yet stands on a plateau, where a radius that it would bear
    later can keep it for good. The loss is the clean one, averaged over processes and, with decay
    0.9, over updates; its first value is the mean of the first ten, which are never perturbed. If
    the loss rises again, so that it is above the share, updates are plain again.

    A model that has learned its task already, such as a language model on text like that of its
    pre-training, may never come below the share, and is then never perturbed;
    `sam/share_perturbed_updates` in the log tells.

    State: the averages, and the last loss, which the host reads one update later, when it is known
    anyway. A loss that is not finite changes nothing.
    """

    stateful = True

    share: float = field(default=0.9, metadata={"help": "of the loss's first value", **SHARE})

    def __call__(self, at: Landscape) -> bool:
        """Return whether the mean loss of the updates so far is below the share."""
        self._take_in()
        limit = self.share * self.state.number("first", 0.0)
        return self.state.number("count", 0) >= FIRST and self.state.number("mean", 0.0) < limit

    def note(self, at: Landscape, update: Vector) -> None:
        """Keep the loss of this update."""
        self.state["last"] = at.mean_loss()

    def _take_in(self) -> None:
        """Add the last update's loss to the averages."""
        last = self.state.tensor("last")
        if last is None:
            return
        loss = float(last)
        del self.state["last"]
        count, first = self.state.number("count", 0), self.state.number("first", 0.0)
        if not math.isfinite(loss):
            return
        if count < FIRST:
            first = (count * first + loss) / (count + 1)
            self.state.update(count=count + 1, first=first, mean=first)
        else:
            self.state["mean"] = 0.9 * self.state.number("mean", first) + 0.1 * loss


FIRST = 10
"""The number of updates whose mean loss `learning` takes for the loss's first value."""
