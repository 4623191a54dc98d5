# SPDX-License-Identifier: Apache-2.0
"""`Method`: the base class of all methods, a function from a Landscape to the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from ..landscape import Landscape
from ..parts.base import Part
from ..parts.radius import Rho, radius
from ..parts.when import Schedule
from ..vector import Vector


@dataclass
class Method(Part):
    """A recipe that turns a Landscape into one gradient; subclasses write it as `update(at)`.

    Class attributes:
        paper: "authors, venue, arXiv id".
        passes: forward-backward passes per update at the defaults, as text: their mean number
            comes first, or in brackets after a formula.
        memory: peak memory beyond the plain Trainer's at the defaults, in P (copies of the
            trainable parameters), as text that begins with a number.
        use: when to use it, in a few words.
        stateful: whether it carries state from update to update.
        needs_here: whether the update uses the ascent gradient for more than the perturbation.
        pretrained_rho: the radius to try first on weights that come from a checkpoint, in the unit
            of the method's own `rho`; None where nothing is known.

    Whether a method asks its Landscape for single examples, their losses or further data is not
    declared. `hf_sam.methods.rehearsal` finds it out.
    """

    paper: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    memory: ClassVar[str] = ""
    use: ClassVar[str] = ""

    needs_here = True
    ascent_fraction = 1.0
    pretrained_rho: ClassVar[float | None] = None

    def __call__(self, at: Landscape) -> Vector:
        """Return the update, which the optimizer gets as its gradient.

        An entry is `None` if the gradient at w is `None`.
        """
        update = at.finish(self.update(at))
        for part in self._parts():
            part.note(at, update)
        return update

    def _parts(self) -> Iterator[Part]:
        """Yield this method and its parts, without those of methods inside it."""
        yield self
        for _, child in self.children():
            if not isinstance(child, Method):  # which looks at its own updates itself
                yield from child.walk()

    def update(self, at: Landscape) -> Vector:
        """Return the update for this Landscape."""
        raise NotImplementedError

    @property
    def when(self) -> Schedule | None:
        """The schedule that decides which updates are perturbed, or None.

        It may be the schedule of a method inside this one.
        """
        within = (child.when for _, child in self.children() if isinstance(child, Method))
        return next((when for when in within if when is not None), None)

    @property
    def one_gradient(self) -> bool:
        """Whether the update is the gradient of one pass at w, whose loss may be transformed.

        Such a method works where nobody but a pass sees weights and gradients (ZeRO-3).
        """
        return False

    @property
    def local_ascent(self) -> bool:
        """Whether each process may perturb along a gradient of its own.

        It may if the update depends on nothing but the descent gradient.
        """
        # State that differs between processes would make their updates drift apart.
        return not (self.keeps_state or self.needs_here)


@dataclass
class Perturbing(Method):
    """A method whose ascent gradient may be taken on a part of the batch.

    Attributes:
        ascent_fraction: the share of each micro-batch's examples, from its beginning, on which the
            ascent gradient is computed. To first order this keeps all of SAM's effect, because
            both passes still share the noise of these examples; other examples in the ascent would
            lose it. A gradient of fewer examples is longer for its noise, so the best rho may grow,
            by up to 1 / sqrt(ascent_fraction). The logged clean loss is that of these examples, and
            sharpness is not read. Bahri, Mobahi, Tay, ACL 2022, arXiv 2110.08529.
    """

    # Of an L2 norm over all weights; a method with another unit says its own.
    pretrained_rho: ClassVar[float | None] = 0.01

    ascent_fraction: float = field(
        default=1.0,
        kw_only=True,
        metadata={"help": "share of the batch for the ascent", "low": 0.01, "high": 1.0},
    )


@dataclass
class OnePass(Method):
    """A method that knows its perturbation before its only pass, from the updates before.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
    """

    passes = "1"
    needs_here = False
    pretrained_rho = 0.01

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + eps, or at w in the first update."""
        along = self.along(at)
        if along is None:
            return at.gradient()
        with at.perturbed(radius(self.rho)(along, at)):
            return at.gradient()

    def along(self, at: Landscape) -> Vector | None:
        """Return the direction of the perturbation; None if there is none yet."""
        raise NotImplementedError
