# SPDX-License-Identifier: Apache-2.0
"""`Landscape`: the loss of one update's data as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .engine.perturbation import Perturbation
from .engine.sharding import Engine
from .engine.slicing import examples
from .vector import Vector


class Backward(Protocol):
    """Forward and backward of one batch: adds `share` times the gradient of the batch's mean loss to `.grad`.

    Returns `share` times that loss, detached, of shape `()`; with `with_losses=True` the pair of it and the
    per-example losses, detached, of shape (B,), of the same forward. The flag is passed only where it is true.
    """

    def __call__(self, batch: Any, share: Any = 1.0, **with_losses: bool) -> Any:
        """See the class."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where in the run an update stands: what schedules see.

    Attributes:
        step: updates done before this one.
        total: updates of the whole run.
        warmup: updates of the learning rate's warm-up.
        per_epoch: updates in one epoch, where known.
        lr_ratio: the learning rate over its maximum, 0 to 1.
    """

    step: int = 0
    total: int = 1
    warmup: int = 0
    per_epoch: int | None = None
    lr_ratio: float = 1.0

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return self.step / max(self.total, 1)


class Landscape:
    """The loss of one update's data as a function of the weights, asked where the weights stand.

    `gradient()` is one pass: forward and backward over all micro-batches. `with at.perturbed(eps):` steps aside,
    and the same question is then answered at `w + eps`; leaving the block restores the weights bit for bit. Every
    pass after the first replays its random numbers, and leaves random generators and norm statistics untouched.

    Args:
        params: the P trainable parameters.
        batches: the micro-batches of the update, each whatever `backward` takes.
        backward: see `Backward`.
        progress: where in the run this update stands.
        seed: with the step, decides every random choice of the update, equally on all ranks.
        names: the parameters' names.
        per_example: returns a batch's losses of shape (B,) without a graph; only for the perturbed point of
            methods that select examples.
        shares: weight of each micro-batch's mean loss; default: by examples, adding up to 1.
        where: which parameters are perturbed; default: all.
        sample: draws n training examples as a list of batches, for methods that look at data beyond the update's.
        engine: process, precision and replay mechanisms.
        on_phase: told "ascent", "perturb", "descent", "restore" as each begins.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        batches: Sequence[Any],
        backward: Backward,
        *,
        progress: Progress | None = None,
        seed: int = 0,
        names: Sequence[str] | None = None,
        per_example: Callable[[Any], Tensor] | None = None,
        shares: Sequence[Any] | None = None,
        where: Sequence[bool] | None = None,
        sample: Callable[[int, torch.Generator], list[Any]] | None = None,
        engine: Engine | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        self.params = list(params)
        self.batches = list(batches)
        self.backward = backward
        self.progress = progress or Progress()
        self.seed = seed
        self.names = list(names) if names is not None else None
        self.per_example = per_example
        self.shares = list(shares) if shares is not None else _by_examples(self.batches)
        self.where = list(where) if where is not None else [True] * len(self.params)
        self.engine = engine or Engine()
        self.on_phase = on_phase or (lambda phase: None)
        self._sample = sample
        self._replay = self.engine.replay.fresh()
        self._generator: torch.Generator | None = None
        self._here: list[bool] | None = None
        self._peeked: Vector | None = None
        self._aside: list[Perturbation] = []
        self.loss: Tensor | None = None
        self.readings: dict[str, Tensor] = {}

    # -- asking ---------------------------------------------------------------------------------

    def gradient(self, local_ok: bool = False) -> Vector:
        """Return the gradient where the weights stand now: one pass over all micro-batches.

        A parameter that had no gradient in the update's first pass has none (`None`) in any later one.

        Args:
            local_ok: the gradient only serves to perturb, so it may stay this rank's own.
        """
        if self._peeked is not None and not self._aside:
            here, self._peeked = self._peeked, None
            return here
        self.on_phase("descent" if self._aside else "ascent")
        together = not (local_ok and self.engine.local_ascent)
        loss = None
        with self._replay():
            for i, (batch, share) in enumerate(zip(self.batches, self.shares, strict=True)):
                now = together and i == len(self.batches) - 1
                with nullcontext() if now else self.engine.no_sync(own=not together):
                    part = self.backward(batch, share)
                loss = part if loss is None else loss + part
        assert loss is not None, "a Landscape needs at least one batch"
        vector = Vector(self.engine.take(self.params), self.engine.total)
        if self._here is None:
            self._here = [t is not None for t in vector]
        vector = vector.keep(self._here)
        if self.loss is None:
            self.loss = loss
        elif len(self._aside) == 1 and "sharpness" not in self.readings:
            self._read_descent(loss, vector)
        return vector

    def peek(self) -> Vector:
        """Return the gradient at w for a look; the next `gradient()` at w hands over the same vector, once."""
        if self._peeked is None:
            self._peeked = self.gradient()
        return self._peeked

    def chosen(self, here: Vector) -> Vector:
        """Return the gradient (same storage) on the parameters that may be perturbed."""
        self.readings.setdefault("ascent_grad_norm", here.norm())
        return here.keep(self.where)

    def finish(self, update: Vector) -> Vector:
        """Return the update with `None` where the first pass had no gradient."""
        return update if self._here is None else update.keep(self._here)

    def mean_loss(self) -> Tensor:
        """Return the loss of the first pass, averaged over ranks, as a `()` tensor."""
        assert self.loss is not None, "no pass yet"
        loss = self.loss.clone()
        self.engine.average_([loss])
        return loss

    def weights(self) -> Vector:
        """Return the weights as they stand now, without copying: read only."""
        return Vector([p.detach() for p in self.params], self.engine.total)

    @property
    def generator(self) -> torch.Generator:
        """A CPU generator of this update's own, a function of (seed, step), equal on all ranks."""
        if self._generator is None:
            mixed = (self.seed * 0x9E3779B97F4A7C15 + self.progress.step * 0xD1B54A32D192ED03 + 1) % (1 << 63)
            self._generator = torch.Generator().manual_seed(mixed)
        return self._generator

    def sample(self, n: int) -> list[Any]:
        """Draw n training examples as a list of batches, by this update's generator."""
        if self._sample is None:
            raise ValueError("this Landscape was built without `sample`: pass a function (n, generator) -> batches")
        return self._sample(n, self.generator)

    # -- stepping aside -------------------------------------------------------------------------

    @contextmanager
    def perturbed(self, eps: Vector) -> Iterator[None]:
        """Stand at `w + eps` inside the block and exactly at `w` after it; `eps` is consumed.

        A zero or non-finite `eps` is not applied; the block runs all the same, so that nothing depends on a value
        that only the device knows.
        """
        self.on_phase("perturb")
        size = eps.norm()
        ok = torch.isfinite(size) & (size > 0)
        if "sharpness" not in self.readings:
            self.readings["perturbation_norm"] = torch.where(ok, size, torch.zeros_like(size))
        with Perturbation(self.params, eps, ok) as aside:
            self._aside.append(aside)
            try:
                yield
            finally:
                self._aside.pop()
                self.on_phase("restore")

    def skip(self, skipped: Tensor) -> None:
        """Note (a `()` bool tensor) that a direction had no length to perturb along."""
        before = self.readings.get("skipped")
        self.readings["skipped"] = skipped if before is None else before | skipped

    def _read_descent(self, loss: Tensor, there: Vector) -> None:
        """Read sharpness, and the cosine between the perturbation and the gradient there."""
        assert self.loss is not None
        self.readings["sharpness"] = loss - self.loss
        along = self.engine.total(self._aside[0].displacement_dot(there, self.params))
        lengths = self.readings["perturbation_norm"] * there.norm()
        self.readings["grad_cosine"] = torch.where(lengths > 0, along / lengths, torch.zeros_like(along))


def _by_examples(batches: Sequence[Any]) -> list[float]:
    sizes = [examples(batch) for batch in batches]
    return [size / max(sum(sizes), 1) for size in sizes]
