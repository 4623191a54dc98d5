# SPDX-License-Identifier: Apache-2.0
"""Stochastic scheduled SAM (SS-SAM), which tosses a coin for every update."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.when import COINS, SHARE, Schedule
from ..vector import Vector
from .sam import SAM


@dataclass
class SSSAM(SAM):
    """Stochastic scheduled SAM (SS-SAM). Zhao, Zhang, Hu, 2022, arXiv 2203.09962.

    Update::

        u = gradient of L at w + rho here / |here|   with probability p(x)   (SAM)
        u = gradient of L at w                       otherwise

        x = the share of all updates that is done
        constant       p = p_start
        piecewise      p = p_start for x < switch, p_end from there on
        linear         p = p_start + (p_end - p_start) x
        trigonometric  p = p_start + (p_end - p_start) (1 - cos(pi x)) / 2

    This is `sam` under the schedule `random:...`. A later version of the paper is called RST,
    randomized sharpness-aware training.

    Cost: 1 pass or 2, 1 + (mean of p) on average; 1 P extra, no state: the coin is a function of
    (seed, update), equal on all ranks and after a resume.

    Defaults: rho = 0.05, SAM's; schedule = linear from p_start = 0 to p_end = 1, 1.5 passes on
    average, where the authors find it on a par with SAM; switch = 0.5, which costs the same.

    Deviations: the paper names the four families, and their parameters here are our choice.
    G-RST's weighted mean of both gradients is left out.

    When it does not help: it saves time and does not raise accuracy. If time does not matter, use
    `sam`.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        schedule: family of p.
        p_start: probability at the start (throughout, for `constant`).
        p_end: probability at the end.
        switch: share of all updates, for `piecewise`.
    """

    paper = "Zhao et al., 2022, arXiv 2203.09962"
    passes = "1 + p (1.5)"
    use = "SAM at three quarters of its cost, spread over the whole run"

    schedule: str = field(
        default="linear",
        metadata={
            "help": "family of p",
            "choices": tuple(COINS),
            # A constant p is p_start, whose default 0 perturbs nothing.
            "grid": ("piecewise", "linear", "trigonometric"),
        },
    )
    p_start: float = field(default=0.0, metadata={"help": "probability at the start", **SHARE})
    p_end: float = field(default=1.0, metadata={"help": "probability at the end", **SHARE})
    switch: float = field(default=0.5, metadata={"help": "fraction of all updates", **SHARE})

    @property
    def when(self) -> Schedule:
        """The coin that decides which updates are perturbed."""
        values = {"constant": (self.p_start,), "piecewise": (self.p_start, self.p_end, self.switch)}
        return COINS[self.schedule](*values.get(self.schedule, (self.p_start, self.p_end)))

    def update(self, at: Landscape) -> Vector:
        """Return SAM's update or the gradient at w, as the coin decides."""
        return super().update(at) if self.when(at) else at.gradient()
