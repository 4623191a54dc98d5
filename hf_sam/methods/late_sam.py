# SPDX-License-Identifier: Apache-2.0
"""Late-phase SAM, which runs at the end of training only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.when import Schedule, after
from ..vector import Vector
from .sam import SAM


@dataclass
class LateSAM(SAM):
    """Late-phase SAM. Zhou, Wang, Mao, Li, Yan, ICLR 2025, arXiv 2410.10373.

    Update::

        u = gradient of L at w                       before the share `start` of all updates
        u = gradient of L at w + rho here / |here|   from there on (SAM)

    The paper finds that a few epochs of SAM at the end reach nearly the generalisation and flatness
    of SAM in the whole run. This is `sam` under the schedule `after:start`.

    Cost: 1 pass before, 2 after: 2 - start on average; 1 P extra, no state.

    Defaults: rho = 0.05, SAM's; start = 0.75 (the authors' script: from epoch 150 of 160).

    Deviations: one optimizer serves the whole run, so that momentum is kept; the authors' code
    (zzp1012/SAM-in-Late-Phase @ 217fea4) starts a new one at the switch. Its rho of 2.0 is for
    adaptive SAM.

    When it does not help: runs that stop early. The start is a share of the planned number of
    updates; if training ends before it, SAM never ran.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        start: share of all updates, 0 to 1, after which SAM begins.
    """

    paper = "Zhou et al., ICLR 2025, arXiv 2410.10373"
    passes = "2 - start (1.25)"
    use = "most of SAM's gain at a fraction of its cost; fine-tuning of language models"

    start: float = field(
        default=0.75,
        metadata={
            "help": "fraction of all updates",
            "low": 0.0,
            "high": 1.0,
            "grid": (0.5, 0.75, 0.9),
        },
    )

    @property
    def when(self) -> Schedule:
        """The schedule, which picks all updates from `start` to the end."""
        return after(self.start)

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w before `start`, and SAM's update from there on."""
        return super().update(at) if self.when(at) else at.gradient()
