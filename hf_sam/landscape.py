# SPDX-License-Identifier: Apache-2.0
"""`Landscape`: the loss of one update's data as a function of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .engine.perturbation import Perturbation
from .engine.perturbation import Support as Support
from .engine.sharding import Engine
from .engine.slicing import beginning, contiguous_groups, examples, ratio, take, weight
from .vector import Scalar, Vector, add_up

Piece = tuple[int, Tensor | slice | None]
"""Number of a micro-batch, and which of its examples; None: all of it, uncut."""


class Backward(Protocol):
    """Forward and backward of one batch: adds `share` times the gradient of the batch's mean loss
    to `.grad`.

    Returns `share` times that loss, detached, of shape `()`; with `with_losses=True` the pair of it
    and the per-example losses, detached, of shape (B,), of the same forward. The flag is passed
    only where it is true.
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


class Masked(Vector):
    """A vector whose entries are zero outside of supports, where the weights then need no snapshot.

    What may put something else there makes it an ordinary vector.

    Attributes:
        supports: per parameter, where the entry may differ from zero; None: everywhere.
    """

    __slots__ = ("supports",)

    def __init__(self, vector: Vector, supports: Sequence[Support | None]) -> None:
        super().__init__(vector, vector.shards)
        self.supports: Sequence[Support | None] | None = supports

    def add_(self, other: Vector, scale: Scalar = 1.0) -> Vector:
        """See `Vector.add_`."""
        self.supports = None
        return super().add_(other, scale)

    def where_(self, ok: Tensor, other: Vector | None = None) -> Vector:
        """See `Vector.where_`."""
        self.supports = None
        return super().where_(ok, other)

    def changed(self) -> Vector:
        """See `Vector.changed`."""
        self.supports = None
        return super().changed()


class Landscape:
    """The loss of one update's data as a function of the weights, asked where the weights stand.

    `gradient()` is one pass: forward and backward over all micro-batches. `with at.perturbed(eps):`
    steps aside, and the same question is then answered at `w + eps`; leaving the block restores the
    weights bit for bit. Every pass after the first replays its random numbers, and leaves random
    generators and norm statistics untouched.

    Args:
        params: the P trainable parameters.
        batches: the micro-batches of the update, each whatever `backward` takes.
        backward: see `Backward`.
        progress: where in the run this update stands.
        seed: with the step, decides every random choice of the update, equally on all ranks.
        names: the parameters' names.
        per_example: returns a batch's losses of shape (B,) without a graph; only for the perturbed
            point of methods that select examples.
        shares: weight of each micro-batch's mean loss; default: by examples, adding up to 1.
        where: which parameters are perturbed; default: all.
        sample: draws n training examples, one batch each, for methods that look at data beyond the
            update's.
        slicer: cuts and weighs batches, for those that are not tensors or mappings of tensors.
        engine: process, precision and replay mechanisms.
        cosine: read `grad_cosine`, which takes a walk over all weights.
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
        slicer: Cutter | None = None,
        engine: Engine | None = None,
        cosine: bool = True,
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
        self.slicer: Cutter = slicer or Slicer()
        self._sample = sample
        self._cosine = cosine
        self._replay = self.engine.replay.fresh()
        self._generator: torch.Generator | None = None
        self._here: list[bool] | None = None
        self._peeked: Vector | None = None
        self._aside: list[tuple[Perturbation, Tensor]] = []  # each with its length
        self._averaged = "pass"
        self._comparable = True
        self.loss: Tensor | None = None
        self.losses: list[Tensor] = []
        self.readings: dict[str, Tensor] = {}

    # -- asking ---------------------------------------------------------------------------------

    def gradient(
        self,
        local_ok: bool = False,
        *,
        only: Sequence[bool] | None = None,
        with_losses: bool = False,
        fraction: float = 1.0,
    ) -> Vector:
        """Return the gradient where the weights stand now: one pass over all micro-batches.

        A parameter that had no gradient in the update's first whole pass has none (`None`) in any
        later one.

        Args:
            local_ok: the gradient only serves to perturb, so it may stay this rank's own.
            only: compute it for these parameters alone, and save the work of the others.
            with_losses: leave the per-example losses, a tensor (B,) per micro-batch, in `losses`.
            fraction: of the examples of each micro-batch, from its beginning, that the pass looks
                at.
        """
        if self._peeked is not None and not self._aside:
            here, self._peeked = self._peeked, None
            return here
        self.on_phase("descent" if self._aside else "ascent")
        data = self if fraction == 1.0 else self._beginnings(fraction)
        how = self.engine.how(local_ok, only is not None, self._averaged)
        for param in self.params:
            param.grad = None  # what an earlier update left there is no part of this gradient
        with self._replay(), self.engine.passes(self.params, only):
            loss = data._passes(how.together, with_losses)
            vector = Vector(self.engine.take(self.params), self.engine.shards)
        if with_losses:
            self.losses = data.losses
        if only is not None:
            vector = vector.keep(only)
        if how.averaged:
            vector = self.together(vector)
        if self._here is None and only is None and fraction == 1.0 and how.shared:
            self._here = [t is not None for t in vector]
        vector = vector if self._here is None else vector.keep(self._here)
        self._read(loss, vector, comparable=fraction == 1.0)
        return vector

    def _passes(self, together: bool, with_losses: bool) -> Tensor:
        """Run forward and backward over all micro-batches; return the `()` loss."""
        total = None
        self.losses = []
        for i, (batch, share) in enumerate(zip(self.batches, self.shares, strict=True)):
            now = together and i == len(self.batches) - 1
            with nullcontext() if now else self.engine.no_sync(own=not together):
                part = self.backward(batch, share, **({"with_losses": True} if with_losses else {}))
            if with_losses:
                part, losses = part
                self.losses.append(losses)
            total = part if total is None else total + part
        assert total is not None, "a Landscape needs at least one batch"
        return total

    def losses_here(self) -> list[Tensor]:
        """Return the per-example losses where the weights stand now: a forward without a graph,
        (B,) per micro-batch.
        """
        if self.per_example is None:
            raise ValueError(
                "this Landscape was built without `per_example`: pass a function batch -> losses "
                "of shape (B,)"
            )
        self.on_phase("descent" if self._aside else "ascent")
        with self._replay():
            return [self.per_example(batch) for batch in self.batches]

    def peek(self) -> Vector:
        """Return the gradient at w for a look; the next `gradient()` at w hands over the same
        vector, once.
        """
        if self._peeked is None:
            self._peeked = self.gradient()
        return self._peeked

    @property
    def some(self) -> list[bool] | None:
        """Which parameters may be perturbed, None for all: `only` of a gradient that serves for
        nothing else.
        """
        return None if all(self.where) else self.where

    def chosen(self, here: Vector) -> Vector:
        """Return the gradient (same storage) on the parameters that may be perturbed."""
        chosen = here.keep(self.where)
        self.readings.setdefault("ascent_grad_norm", chosen.norm())
        return chosen

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
        return Vector(self.engine.held(self.params), self.engine.shards)

    def part(self, i: int, whole: Tensor) -> Tensor:
        """Return of a tensor of parameter i's full shape the part that this process holds."""
        return self.engine.part(self.params[i], whole)

    @property
    def generator(self) -> torch.Generator:
        """A CPU generator of this update's own, a function of (seed, step), equal on all ranks."""
        if self._generator is None:
            mixed = (
                self.seed * 0x9E3779B97F4A7C15 + self.progress.step * 0xD1B54A32D192ED03 + 1
            ) % (1 << 63)
            self._generator = torch.Generator().manual_seed(mixed)
        return self._generator

    def sample(self, n: int) -> list[Any]:
        """Draw n training examples as a list of batches, by this update's generator."""
        if self._sample is None:
            raise ValueError(
                "this Landscape was built without `sample`: pass a function (n, generator) -> "
                "batches"
            )
        return self._sample(n, self.generator)

    # -- parts of the data ----------------------------------------------------------------------

    def select(self, keep: Sequence[Tensor]) -> Landscape:
        """Return the loss of chosen examples, for the update's second pass.

        Args:
            keep: positions of the chosen examples, (K,) per micro-batch.
        """
        return self._part([(i, index) for i, index in enumerate(keep)])

    def _beginnings(self, fraction: float) -> Landscape:
        sizes = [self.slicer.size(batch) for batch in self.batches]
        return self._part([(i, beginning(n, fraction)) for i, n in enumerate(sizes)])

    def _part(self, pieces: Sequence[Piece]) -> Landscape:
        """Return this update's loss on the pieces, scaled up to this Landscape's whole share."""
        part = copy.copy(self)
        part.batches = [self.slicer.take(self.batches[i], index) for i, index in pieces]
        weights = self._weights_of(pieces, part.batches)
        whole, kept = sum(self.shares), sum(weights)
        part.shares = [w * ratio(whole, kept) for w in weights]
        return part

    def _weights_of(self, pieces: Sequence[Piece], batches: Sequence[Any]) -> list[Any]:
        """Return the share of each piece in this Landscape: its micro-batch's, by examples or
        labelled tokens.
        """
        of = self.slicer.weight
        return [
            self.shares[i] * ratio(of(batch), of(self.batches[i]))
            for (i, _), batch in zip(pieces, batches, strict=True)
        ]

    def shards(
        self, groups: int | None, *, descent_only: bool = False
    ) -> Iterator[tuple[Any, Landscape]]:
        """Yield (share, Landscape) of contiguous groups of the examples; afterwards the readings
        are their means.

        Each is an update's loss in its own right, with its first pass and its own replay.

        Args:
            groups: how many; None makes a group of every micro-batch.
            descent_only: only the last gradient of a group matters, and the caller averages the sum
                over ranks by `together`; otherwise each pass of a group is averaged over ranks by
                itself.
        """
        cut = self._cut(groups)
        parts = [self._part(pieces) for pieces in cut]
        own = [self._weights_of(pieces, p.batches) for pieces, p in zip(cut, parts, strict=True)]
        done = list(zip(self.engine.agreed([sum(shares) for shares in own]), parts, strict=True))
        for (share, part), shares in zip(done, own, strict=True):
            part.shares = [ratio(s, share) for s in shares]
            part._replay, part._aside, part.readings = self.engine.replay.fresh(), [], {}
            part.loss, part._here, part._peeked = None, None, None
            part._averaged = "caller" if descent_only else "itself"
            yield share, part
        self._merge(done)

    def _cut(self, groups: int | None) -> list[list[Piece]]:
        if groups is None:
            return [[(i, None)] for i in range(len(self.batches))]
        sizes = [self.slicer.size(batch) for batch in self.batches]
        return list(map(list, contiguous_groups(sizes, groups)))

    def _merge(self, done: list[tuple[Any, Landscape]]) -> None:
        """Take over the groups' loss and readings."""
        self.loss = sum((share * part.loss).to(part.loss) for share, part in done)
        whole = sum(share for share, _ in done)
        for name in {name for _, part in done for name in part.readings} - {"skipped"}:
            parts = [(share, part.readings[name]) for share, part in done if name in part.readings]
            self.readings[name] = sum(share / whole * value for share, value in parts)
        for _, part in done:
            if "skipped" in part.readings:
                self.skip(part.readings["skipped"])

    def together(self, update: Vector) -> Vector:
        """Average a vector over ranks; a parameter that is missing on some of them counts as
        zero there.
        """
        means = self.engine.average_gradients_(self.params, list(update))
        return Vector(means, self.engine.shards)

    def example_gradients(self, n: int) -> Iterator[Vector]:
        """Yield this rank's share of the gradients of n drawn training examples at w, one by
        one, leaving no trace.
        """
        with self.engine.replay.no_trace():
            for batch in self.sample(n):
                with self.engine.passes(self.params), self.engine.no_sync(own=True):
                    self.backward(batch, 1.0)
                yield Vector(self.engine.take(self.params), self.engine.shards)

    # -- stepping aside -------------------------------------------------------------------------

    @contextmanager
    def perturbed(self, eps: Vector) -> Iterator[None]:
        """Stand at `w + eps` inside the block and exactly at `w` after it; `eps` is consumed.

        A zero or non-finite `eps` is not applied; the block runs all the same, so that nothing
        depends on a value that only the device knows.
        """
        self.on_phase("perturb")
        size = eps.norm()
        ok = torch.isfinite(size) & (size > 0)
        held = self.engine.held(self.params)
        self.engine.watch(held, eps)
        supports = eps.supports if isinstance(eps, Masked) else None
        perturbation = Perturbation(held, eps, ok, supports)
        eps.tensors.clear()  # a caller that still holds it keeps nothing alive
        with self.engine.moving(), perturbation as aside:
            self._aside.append((aside, torch.where(ok, size, torch.zeros_like(size))))
            try:
                yield
            finally:
                self._aside.pop()
                self.on_phase("restore")
        if aside.along:  # and nobody stepped along it
            self._read_cosine(aside, aside.along)

    def skip(self, skipped: Tensor) -> None:
        """Note (a `()` bool tensor) that a direction had no length to perturb along."""
        before = self.readings.get("skipped")
        self.readings["skipped"] = skipped if before is None else before | skipped

    def _read(self, loss: Tensor, vector: Vector, comparable: bool) -> None:
        """Read the clean loss from the first pass; the others from the first perturbed one after
        it, the cosine on the way back.
        """
        if self.loss is None:
            self.loss = loss
            self._comparable = comparable
        elif len(self._aside) == 1 and "perturbation_norm" not in self.readings:
            aside, length = self._aside[0]
            self.readings["perturbation_norm"] = length
            if self._comparable:
                self.readings.setdefault("sharpness", loss - self.loss)
            if self._cosine:
                aside.along = vector

    def _read_cosine(self, aside: Perturbation, vector: Vector) -> None:
        """Read the cosine of the step that was taken and the gradient found there."""
        along = add_up(self.engine.shards.sums(aside.displacement_dot))
        lengths = self.readings["perturbation_norm"] * vector.norm()
        none = torch.zeros_like(along)
        self.readings["grad_cosine"] = torch.where(lengths > 0, along / lengths, none)


class Cutter(Protocol):
    """How a Landscape counts, weighs and chooses examples."""

    def size(self, batch: Any) -> int:
        """Return the number of examples, B."""
        ...

    def weight(self, batch: Any) -> Any:
        """Return what the batch's mean loss is a mean over: labelled tokens or examples."""
        ...

    def take(self, batch: Any, index: Tensor | slice | None) -> Any:
        """Return the batch of the chosen examples, of all for None."""
        ...


class Slicer:
    """How a Landscape counts, weighs and chooses examples: here of tensors, and mappings and
    tuples of them.
    """

    def size(self, batch: Any) -> int:
        """Return the number of examples, B."""
        return examples(batch)

    def weight(self, batch: Any) -> Any:
        """Return what the batch's mean loss is a mean over: labelled tokens or examples."""
        return weight(batch)

    def take(self, batch: Any, index: Tensor | slice | None) -> Any:
        """Return the batch of the chosen examples, of all for None."""
        return batch if index is None else take(batch, index)


def _by_examples(batches: Sequence[Any]) -> list[float]:
    sizes = [examples(batch) for batch in batches]
    return [size / max(sum(sizes), 1) for size in sizes]
