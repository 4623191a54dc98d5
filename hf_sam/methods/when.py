# SPDX-License-Identifier: Apache-2.0
"""`When`: one method in the updates that a schedule picks, another method in the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.when import Schedule
from ..vector import Vector
from .base import Method
from .plain import Plain
from .rehearsal import asks


@dataclass
class When(Method):
    """`method` in the updates that `schedule` picks, `otherwise` (the plain Trainer) in the others.

    Attributes:
        schedule: the schedule that picks updates.
        method: the method of the updates that are picked.
        otherwise: the method of all other updates.

    Example:
        >>> from hf_sam import FriendlySAM, Progress
        >>> from hf_sam.parts import after
        >>> late_and_friendly = When(after(0.75), FriendlySAM())
        >>> late_and_friendly.when.ever([Progress(step=80, total=100)])
        True
    """

    schedule: Schedule
    method: Method
    otherwise: Method = field(default_factory=Plain)

    def __post_init__(self) -> None:
        """Refuse a schedule that needs the gradient at w, if a method does not start with it."""
        super().__post_init__()
        for method in (self.method, self.otherwise) if self.schedule.needs_gradient else ():
            if not asks(method).starts_at_w:
                fraction = getattr(method, "ascent_fraction", 1.0)
                how = f" with ascent_fraction={fraction}" if fraction < 1 else ""
                raise ValueError(
                    f"the schedule {type(self.schedule).__name__!r} decides by the whole gradient "
                    f"at w, which {type(method).__name__}{how} does not compute first: choose "
                    "another schedule, such as every:2"
                )

    def update(self, at: Landscape) -> Vector:
        """Return the update of the method that the schedule picks."""
        return self.method(at) if self.schedule(at) else self.otherwise(at)

    @property
    def when(self) -> Schedule:
        """The schedule that picks updates."""
        return self.schedule

    @property
    def one_gradient(self) -> bool:
        """Whether both methods are of this kind, and the schedule does not look at the gradient."""
        both = self.method.one_gradient and self.otherwise.one_gradient
        return both and not self.schedule.needs_gradient

    @property
    def local_ascent(self) -> bool:
        """Whether the method allows it, and the schedule does not look at the gradient."""
        # By gradients of their own, processes might decide differently about one update.
        return self.method.local_ascent and not self.schedule.needs_gradient
