# SPDX-License-Identifier: Apache-2.0
"""Tail SAM, which runs while the learning rate falls and looks at a part of the batch first."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.radius import Rho, RhoSchedule, lr, radius
from ..parts.when import Schedule, after, decay
from ..vector import Vector
from .base import Method


@dataclass
class TailSAM(Method):
    """Tail SAM: late-phase SAM in the learning rate's decay, with a cheap ascent.

    Update::

        u = gradient of L at w                    before the decay
        here = gradient of L_part at w            in the decay
        eps  = rho (lr / largest lr) here / |here|
        u    = gradient of L at w + eps

    A recipe of three parts. Late-phase SAM (Zhou et al., ICLR 2025, arXiv 2410.10373): sharpness at
    the end of training is what counts. The ascent on a part of the batch (Bahri, Mobahi, Tay, ACL
    2022, arXiv 2110.08529). And a radius in proportion to the learning rate, as in GSAM. The part
    is the first examples of each micro-batch. Before the decay the run is the plain Trainer's, bit
    for bit.

    Cost: 1 pass before the decay, 1 + fraction in it: 1.075 passes on average with a decay over the
    last 30 % of the updates; 1 P extra in the decay, no state.

    Defaults: rho = 0.01 at the largest learning rate, a radius for pretrained weights; fraction =
    0.25; start = "decay", the first update after the warm-up whose learning rate is below its
    maximum. Use `lr_scheduler_type="warmup_stable_decay"`. A number for `start` is a share of all
    updates, as in `late_sam`.

    Deviations: the recipe is ours. A schedule given as `sam_rho` replaces the proportional radius.
    In the decay, the logged loss is that of the part.

    When it does not help: fine-tuning of a pretrained encoder for ten epochs on 1,000 examples
    gained nothing beyond noise, with right and with wrong labels, at a radius of 0.01 and at 0.05
    (benchmarks/EVIDENCE.md). Under a constant learning rate it never starts (a warning says so).
    Under Trainer's default, the linear decay, the tail is the whole run, at 1.25 passes; for tails
    that begin in the middle of a decay, others have reported no gain.

    Attributes:
        rho: radius at the largest learning rate, weight-space L2 norm, or a schedule for it.
        fraction: share of each micro-batch's examples, from its beginning, for the ascent gradient.
            It keeps SAM's effect to first order, because both passes share the noise of these
            examples; the best rho may grow by up to 1 / sqrt(fraction).
        start: "decay", or the share of all updates, 0 to 1, after which SAM begins.
    """

    paper = "Zhou et al., ICLR 2025, arXiv 2410.10373; Bahri et al., ACL 2022, arXiv 2110.08529"
    passes = "1 + fraction of the decay (1.075)"
    memory = "1"
    use = "nearly free: SAM while the learning rate decays; no gain was measured in fine-tuning yet"
    needs_here = False
    pretrained_rho = 0.01

    rho: Rho = field(
        default=0.01, metadata={"help": "radius at the largest learning rate", "low": 0.0}
    )
    fraction: float = field(
        default=0.25,
        metadata={
            "help": "share of the batch for the ascent",
            "low": 0.01,
            "high": 1.0,
            "grid": (0.25, 0.5, 1.0),
        },
    )
    start: float | str = field(
        default="decay",
        metadata={
            "help": "when SAM begins",
            "choices": ("decay",),
            "low": 0.0,
            "high": 1.0,
            "grid": ("decay", 0.5, 0.7),
        },
    )

    @property
    def ascent_fraction(self) -> float:  # type: ignore[override]
        """The share of the examples for the ascent gradient."""
        return self.fraction

    @property
    def when(self) -> Schedule:
        """The schedule, which picks the updates of the decay, or all from `start` to the end."""
        return decay() if isinstance(self.start, str) else after(self.start)

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w before the tail, and SAM's update in it."""
        if not self.when(at):
            return at.gradient()
        rho = self.rho if isinstance(self.rho, RhoSchedule) else lr(self.rho)
        with at.perturbed(radius(rho)(at.ascent(self), at)):
            return at.gradient()
