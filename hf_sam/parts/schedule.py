# SPDX-License-Identifier: Apache-2.0
"""`Schedule`: the base class of parts that decide which updates are perturbed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ..landscape import Landscape, Progress
from .base import Part

SHARE = {"low": 0.0, "high": 1.0}


@dataclass
class Schedule(Part):
    """`schedule(at)` returns whether this update is perturbed.

    Class attributes:
        needs_gradient: whether the decision depends on the gradient at w, so that the method must
            start with that gradient.
        remedy: advice for a run in which the schedule picks no update.
    """

    needs_gradient: ClassVar[bool] = False
    remedy: ClassVar[str] = ""

    def __call__(self, at: Landscape) -> bool:
        """Return whether this update is perturbed."""
        raise NotImplementedError

    def ever(self, run: Iterable[Progress]) -> bool:
        """Return whether any of these updates can be picked.

        Args:
            run: the updates to come. Their `lr_ratio` is NaN if nobody can foresee it.
        """
        return True

    def remark(self, run: Iterable[Progress]) -> str | None:
        """Return one line that a user should read before a run of these updates, or None."""
        return None if self.ever(run) else self._never()

    def _never(self) -> str:
        return f"SAM never starts in this run: the schedule {self} picks no update.{self.remedy}"


@dataclass
class Planned(Schedule):
    """A schedule that decides by nothing but the position in the run."""

    def picks(self, progress: Progress) -> bool:
        """Return whether the update at this position is perturbed."""
        raise NotImplementedError

    def __call__(self, at: Landscape) -> bool:
        """Return whether this update is perturbed."""
        return self.picks(at.progress)

    def ever(self, run: Iterable[Progress]) -> bool:
        """Return whether any of these updates is picked."""
        return any(map(self.picks, run))
