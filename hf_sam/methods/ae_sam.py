# SPDX-License-Identifier: Apache-2.0
"""AE-SAM, which perturbs the updates whose gradient is large."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.gates import adaptive
from ..parts.radius import Rho, radius
from ..vector import Vector
from .base import Method


@dataclass
class AESAM(Method):
    """An adaptive policy to employ SAM (AE-SAM). Jiang et al., ICLR 2023, arXiv 2304.14647.

    Update::

        here    = gradient of L at w
        mu      = delta mu + (1 - delta) |here|^2
        sigma^2 = delta sigma^2 + (1 - delta) (|here|^2 - mu)^2
        u       = gradient of L at w + rho here / |here|   if |here|^2 >= mu + c sigma   (SAM)
        u       = here                                     otherwise
        c goes from lambda_2 (start of the run) to lambda_1 (end)

    Large gradients mark sharp places, where SAM has something to do. This is `sam` under the
    schedule `adaptive`.

    Cost: 1 pass or 2, more often 2 towards the end; 1 P extra, state: mu and sigma^2. The host
    waits for one number in each update.

    Defaults: rho = 0.05, SAM's; delta = 0.9, lambda_1 = -1, lambda_2 = 1, which are recalled from
    the paper and not checked.

    Deviations: the averages start at the first finite |here|^2, and a gradient that is not finite
    changes neither. The gradient is the one averaged over all ranks, so that they decide alike.

    When it does not help: gradients of nearly constant size, which it perturbs by chance.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        delta: decay of both averages, per update.
        lambda_1: c at the end of the run.
        lambda_2: c at the start of the run.
    """

    paper = "Jiang et al., ICLR 2023, arXiv 2304.14647"
    passes = "2 at most, 1 where the gradient is small"
    memory = "1"
    use = "SAM where the loss is steep, at about three quarters of its cost"
    stateful = True
    needs_here = False
    pretrained_rho = 0.01

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    delta: float = field(
        default=0.9, metadata={"help": "decay of both averages", "low": 0.0, "high": 1.0}
    )
    lambda_1: float = field(default=-1.0, metadata={"help": "c at the end of the run"})
    lambda_2: float = field(default=1.0, metadata={"help": "c at the start of the run"})

    @property
    def when(self) -> adaptive:
        """The schedule, which keeps its averages in the state of this method."""
        gate = adaptive(self.delta, self.lambda_1, self.lambda_2)
        gate.__dict__["_state"] = self.state
        return gate

    def update(self, at: Landscape) -> Vector:
        """Return SAM's update or the gradient at w, as the schedule decides."""
        if not self.when(at):
            return at.gradient()
        with at.perturbed(radius(self.rho)(at.ascent(self), at)):
            return at.gradient()
