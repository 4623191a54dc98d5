# SPDX-License-Identifier: Apache-2.0
"""`Update`: all that the passes of an update share, and `Progress`: its position in the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..vector import Numbers, Selection, Vector
from .layers import LAYERS, Layer, chosen
from .protocol import Averaging, Backward, Engine
from .readings import Readings
from .replay import Replay
from .rounding import Nearest, Stochastic
from .snapshot import OnDevice, OnHost


@dataclass(frozen=True)
class Progress:
    """The position of an update in the run, from which schedules decide.

    Attributes:
        step: updates done before this one.
        total: updates of the whole run.
        warmup: updates of the learning rate's warm-up.
        per_epoch: updates in one epoch, if known.
        lr_ratio: the learning rate divided by its maximum, 0 to 1.
        learning_rate: the learning rate itself, the largest one of the optimizer, if known.

    Example:
        >>> Progress(step=25, total=100).fraction
        0.25
    """

    step: int = 0
    total: int = 1
    warmup: int = 0
    per_epoch: int | None = None
    lr_ratio: float = 1.0
    learning_rate: float | None = None

    @property
    def fraction(self) -> float:
        """The share of the run that is done, 0 to 1."""
        return self.step / max(self.total, 1)


@dataclass(frozen=True, kw_only=True)
class Update:
    """The context that all passes of one update share, whichever data they look at.

    Attributes:
        params: the P trainable parameters.
        backward: the function that runs forward and backward of one batch; see `Backward`.
        perturbable: mask of the parameters that may be perturbed.
        progress: where in the run this update stands.
        seed: together with the step, it determines every random choice of the update, equally on
            all processes.
        names: the parameters' names.
        per_example: a function that returns a batch's losses of shape (B,) without a graph. Only
            methods that select examples call it, at the perturbed weights.
        sample: a function that draws n training examples, one batch each. Only methods that look
            at data beyond the update's call it.
        layers: a function that returns the layers with low-rank adapters. Only methods for such
            adapters call it.
        two_losses: whether the ascent gradient is that of a loss of its own.
        engine: the machinery of processes, precision and replay.
        rounding: how `w + eps` is stored, `nearest` or `stochastic`; see `Stochastic`.
        offload: where the weights are kept meanwhile, `none` or `cpu`; see `OnHost`.
        cosine: whether to read `grad_cosine`, which needs a walk over all weights.
        on_phase: a function that is called with "ascent", "perturb", "descent" and "restore" as
            each of these phases begins.
        averaging: who averages the gradient of a pass over processes.
        readings: the values that the passes have read so far.
    """

    params: Sequence[Tensor]
    backward: Backward
    perturbable: Selection
    progress: Progress = field(default_factory=Progress)
    seed: int = 0
    names: Sequence[str] | None = None
    per_example: Callable[[Any], Tensor] | None = None
    sample: Callable[[int, torch.Generator], list[Any]] | None = None
    layers: Callable[[], Sequence[Layer]] | None = None
    two_losses: bool = False
    engine: Engine = field(default_factory=Engine)
    rounding: str = "nearest"
    offload: str = "none"
    cosine: bool = True
    on_phase: Callable[[str], None] | None = None
    averaging: Averaging = Averaging.IN_BACKWARD
    readings: Readings = field(default_factory=Readings)

    def announce(self, phase: str) -> None:
        """Call `on_phase`, if there is one, because a phase begins."""
        if self.on_phase is not None:
            self.on_phase(phase)

    def for_group(self, averaging: Averaging) -> Update:
        """Return the same update for a group of its examples, as if there were no others.

        Its first pass is yet to come, so it has its own readings, replay and random numbers.
        """
        # `replace` makes a new object, which has not cached `replay` and `generator` yet.
        return replace(self, averaging=averaging, readings=Readings())

    @functools.cached_property
    def replay(self) -> Replay:
        """The replay that makes later passes of this update repeat its first one."""
        return self.engine.replay.fresh()

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """The CPU generator of this update, which is a function of (seed, step)."""
        # Odd multipliers, so that neighbouring seeds and steps give unrelated states.
        mixed = self.seed * 0x9E3779B97F4A7C15 + self.progress.step * 0xD1B54A32D192ED03 + 1
        return torch.Generator().manual_seed(mixed % (1 << 63))

    def new_rounding(self) -> Nearest:
        """Return how the sums of one perturbation are stored."""
        if self.rounding == "nearest":
            return Nearest()
        return Stochastic(self.generator, len(self.params))

    def new_snapshot(self) -> OnDevice:
        """Return where the weights are kept during one perturbation."""
        return OnDevice() if self.offload == "none" else OnHost()


class Context:
    """What a method may ask of an update beside the gradients of its data.

    Attributes:
        update: the context that all passes of the update share.
    """

    update: Update

    @property
    def params(self) -> Sequence[Tensor]:
        """The P trainable parameters."""
        return self.update.params

    @property
    def names(self) -> Sequence[str] | None:
        """The parameters' names, if they are known."""
        return self.update.names

    @property
    def where(self) -> Selection:
        """The mask of the parameters that may be perturbed."""
        return self.update.perturbable

    @property
    def progress(self) -> Progress:
        """Where in the run this update stands."""
        return self.update.progress

    @property
    def seed(self) -> int:
        """The seed of the run, equal on all processes."""
        return self.update.seed

    @property
    def generator(self) -> torch.Generator:
        """The CPU generator of this update, a function of (seed, step), equal on all processes."""
        return self.update.generator

    @property
    def loss(self) -> Tensor | None:
        """The clean loss, `()`, which is the loss of the first pass; None before it."""
        return self.update.readings.loss

    @property
    def readings(self) -> dict[str, Tensor]:
        """`()` tensors for the log, by name."""
        return self.update.readings.values

    def weights(self) -> Vector:
        """Return the weights as they stand now. They are no copy, so do not write to them."""
        engine = self.update.engine
        held = (weight.detach() for weight in engine.held(self.params))
        return Vector(held, engine.placement)

    def layers(self) -> list[Layer]:
        """Return the layers with low-rank adapters, with the pairs that may be perturbed.

        A pair is left out if one of its factors may not be perturbed.
        """
        if self.update.layers is None:
            raise ValueError(f"this Landscape has no `layers`: pass () -> the {LAYERS}")
        return chosen(self.update.layers(), self.where)

    def rate(self) -> float:
        """Return the learning rate, which has to be known."""
        rate = self.progress.learning_rate
        if rate is None:
            raise ValueError(
                "this Landscape's progress has no learning rate: give Progress(learning_rate=...)"
            )
        return rate

    def take_own(self, own: Vector) -> Vector:
        """Take the gradients that the last pass left in tensors of the method's own.

        They are averaged over processes and unscaled, as those of the parameters are.
        """
        engine, places = self.update.engine, own.present
        leaves = [t for t in own if t is not None]
        found: Numbers = [None] * len(own)
        grads = engine.average_gradients_(leaves, engine.take_grads(leaves))
        for i, grad in zip(places, grads, strict=True):
            found[i] = grad
        return Vector(found, own.placement)

    def scale_(self, factors: Numbers) -> None:
        """Multiply parameters by `()` factors in place; None leaves a parameter alone.

        In contrast to a perturbation this is a part of the update, beside the gradient that the
        optimizer gets.
        """
        self.update.engine.scale_(self.params, factors)

    def move_(self, step: Vector, scale: float) -> None:
        """Add `scale` times a step to the parameters in place, as a part of the update."""
        self.update.engine.move_(self.params, step, scale)

    def rows(self, i: int, whole: Tensor) -> Tensor:
        """Return the rows that this process holds of a tensor of parameter i's full shape."""
        return self.update.engine.rows(self.params[i], whole)

    def sample(self, n: int) -> list[Any]:
        """Draw n training examples with this update's generator, as a list of batches."""
        if self.update.sample is None:
            raise ValueError("this Landscape has no `sample`: pass (n, generator) -> batches")
        return self.update.sample(n, self.generator)

    def example_gradients(self, n: int) -> Iterator[Vector]:
        """Yield the gradients at w of n drawn training examples, one at a time.

        Each process yields those of its share of the examples. All state that the engine replays
        is afterwards as it was before.
        """
        engine = self.update.engine
        with engine.replay.no_trace():
            for batch in self.sample(n):
                with engine.passes(self.params), engine.no_sync(own=True):
                    self.update.backward(batch, 1.0)
                yield Vector(engine.take_grads(self.params), engine.placement)
