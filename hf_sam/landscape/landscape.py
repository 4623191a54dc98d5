# SPDX-License-Identifier: Apache-2.0
"""`Landscape`: the loss of one update's data as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..sums import or_zero, usable
from ..vector import Selection, Vector
from .data import Data
from .layers import Layer
from .passes import average_, on_present, run_pass
from .perturbation import Perturbation
from .protocol import Ascending, Averaging, Backward, Engine, HeadTap
from .readings import Standing
from .rounding import check_rounding
from .snapshot import check_offload
from .sparse import Masked
from .update import Context, Progress, Update


class Landscape(Context):
    """The loss of one update's data as a function of the weights, evaluated where they stand now.

    `gradient()` is one pass: forward and backward over all micro-batches. `with at.perturbed(eps):`
    moves the weights, so that `gradient()` inside the block is the gradient at `w + eps`; leaving
    the block restores the weights bit for bit. Every pass after the first uses the same random
    numbers as the first, and leaves the random generators, and all other state that the engine
    replays, as it found them.

    Args:
        params: the P trainable parameters.
        batches: the micro-batches of the update, in any form that `backward` accepts.
        backward: the function that runs forward and backward of one batch; see `Backward`.
        progress: where in the run this update stands.
        seed: together with the step, it determines every random choice of the update, equally on
            all processes.
        names: the parameters' names.
        per_example: a function that returns a batch's losses of shape (B,); see `Update`.
        sample: a function that draws n training examples, one batch each; see `Update`.
        layers: a function that returns the layers with low-rank adapters; see `Layer`.
        where: mask of the parameters that may be perturbed; by default all of them.
        rounding: `nearest` or `stochastic`; how `w + eps` is stored in bfloat16.
        offload: `none`, or `cpu` to keep the weights in the host's memory while they are perturbed.
        on_phase: a function that is called as each phase begins; see `Update`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> def backward(batch, share=1.0):
        ...     loss = share * (batch * w * w).sum() / 2
        ...     loss.backward()
        ...     return loss.detach()
        >>> at = Landscape([w], [torch.tensor([1.0, 5.0])], backward)
        >>> at.gradient()[0]
        tensor([1., 5.])
        >>> with at.perturbed(Vector([torch.tensor([0.0, 1.0])])):
        ...     print(at.gradient()[0])
        tensor([ 1., 10.])
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
        sample: Callable[[int, torch.Generator], list[Any]] | None = None,
        layers: Callable[[], Sequence[Layer]] | None = None,
        where: Sequence[bool] | None = None,
        rounding: str = "nearest",
        offload: str = "none",
        on_phase: Callable[[str], None] | None = None,
        two_losses: bool = False,
    ) -> None:
        params = list(params)
        check_rounding(rounding, params, names)
        check_offload(offload)
        update = Update(
            params=params,
            backward=backward,
            perturbable=Selection([True] * len(params) if where is None else where),
            progress=progress or Progress(),
            seed=seed,
            names=names,
            per_example=per_example,
            sample=sample,
            layers=layers,
            engine=Engine.beside(params),
            rounding=rounding,
            offload=offload,
            on_phase=on_phase,
            two_losses=two_losses,
        )
        self._over(update, Data.by_examples(list(batches)))

    @classmethod
    def of(cls, update: Update, data: Data) -> Landscape:
        """Return the Landscape of some data within an update that exists already."""
        self = cls.__new__(cls)
        self._over(update, data)
        return self

    def _over(self, update: Update, data: Data) -> None:
        self.update, self.data = update, data
        self._peeked: Vector | None = None
        self.losses: list[Tensor] = []
        self._tap: HeadTap | None = None

    def behind_head(self, tap: HeadTap) -> Landscape:
        """Return the same Landscape, in each of whose passes a tap is behind the output head."""
        tapped = Landscape.of(self.update, self.data)
        tapped._tap = tap
        return tapped

    def gradient(self, *, with_losses: bool = False) -> Vector:
        """Return the gradient where the weights stand now: one pass over all micro-batches.

        A parameter that had no gradient in the update's first whole pass has the entry `None` in
        every later one.

        Args:
            with_losses: whether `losses` becomes the per-example losses, (B,) per micro-batch.
        """
        return self._pass(self.data, with_losses=with_losses)

    def ascent(
        self, method: Ascending, *, only: Sequence[bool] | None = None, with_losses: bool = False
    ) -> Vector:
        """Return the gradient along which a method perturbs, of the parameters it may perturb.

        The pass looks at the share of the examples that the method asks for. If the method uses
        the gradient for nothing but the perturbation (`needs_here` is false), the gradients of
        other parameters are not computed, and each process may keep its own gradient. Otherwise
        the result has the entries of all parameters, and `perturbable(here)` selects those to
        perturb along.

        Args:
            method: the method that perturbs.
            only: a mask that narrows the choice of parameters to perturb.
            with_losses: as in `gradient`.
        """
        fraction, may = method.ascent_fraction, self.update.perturbable
        chosen = may if only is None else Selection(map(all, zip(may, only, strict=True)))
        # A backward for some parameters is left out where it would save nothing.
        here = self._pass(
            self.data if fraction == 1.0 else self.data.beginnings(fraction),
            only=None if method.needs_here or chosen.everything else chosen,
            ascent=True,
            to_perturb=method.local_ascent,
            with_losses=with_losses,
        )
        along = here.on(chosen)
        # The first ascent of an update is the one that is logged.
        self.readings.setdefault("ascent_grad_norm", along.norm())
        return here if method.needs_here else along

    def perturbable(self, here: Vector) -> Vector:
        """Return the entries, in the same storage, of the parameters that may be perturbed."""
        return here.on(self.update.perturbable)

    def losses_here(self) -> list[Tensor]:
        """Return each micro-batch's losses (B,) where the weights stand, by a forward alone."""
        if self.update.per_example is None:
            raise ValueError("this Landscape has no `per_example`: pass batch -> losses (B,)")
        self._announce_pass()
        with self.update.replay():
            return [self.update.per_example(batch) for batch in self.data.batches]

    def peek(self) -> Vector:
        """Return the gradient at w without using it up: the next pass at w returns it again."""
        if self._peeked is None:
            self._peeked = self.gradient()
        return self._peeked

    def _pass(self, data: Data, *, with_losses: bool = False, **how: Any) -> Vector:
        """Run one pass, or return the gradient that `peek` has computed; `how` is `run_pass`'s."""
        # It is the gradient at w of all examples, so it answers no other question.
        same = data is self.data and not with_losses and not self.update.readings.standing
        same &= not (how.get("ascent") and self.update.two_losses)
        if self._peeked is not None and same:
            here, self._peeked = self._peeked, None
            return here
        self._announce_pass()
        self.losses = []
        return run_pass(
            self.update,
            data,
            whole=data is self.data,
            losses=self.losses if with_losses else None,
            head=self._tap,
            **how,
        )

    def _announce_pass(self) -> None:
        self.update.announce("descent" if self.update.readings.standing else "ascent")

    def finish(self, update: Vector) -> Vector:
        """Return the update with `None` where the first pass had no gradient."""
        return on_present(self.update, update)

    def mean_loss(self) -> Tensor:
        """Return the loss of the first pass, averaged over processes, as a `()` tensor."""
        known = self.readings.get("ascent_loss", self.loss)
        assert known is not None, "the loss is known after the first pass"
        loss = known.clone()  # the average is taken in place, and the reading stays local
        self.update.engine.average_([loss])
        return loss

    def skip(self, skipped: Tensor) -> None:
        """Record whether a perturbation was skipped, as a `()` bool tensor on the device."""
        self.update.readings.skip(skipped)

    def select(self, positions: Sequence[Tensor]) -> Landscape:
        """Return the Landscape of the examples at (K,) positions per micro-batch."""
        return Landscape.of(self.update, self.data.select(positions))

    def groups(
        self, count: int | None, *, descent_only: bool = False
    ) -> Iterator[tuple[Any, Landscape]]:
        """Yield a pair (share, Landscape) for each of several contiguous groups of the examples.

        Each group is treated as an update of its own, with its own first pass and its own replay.
        When all groups are done, the readings of this Landscape become the means of theirs.

        Args:
            count: the number of groups; None makes a group of every micro-batch.
            descent_only: whether only the last gradient of a group matters. The caller then
                averages the sum of these gradients over processes by `average_`. Otherwise every
                pass of a group is averaged by itself.
        """
        groups = self.data.groups(count)
        shares = self.update.engine.agreed([group.share for group in groups])
        who = Averaging.BY_CALLER if descent_only else Averaging.AFTER_PASS
        done = []
        for share, group in zip(shares, groups, strict=True):
            # Dividing by the share makes the group's loss a mean, as that of a whole update is.
            at = Landscape.of(self.update.for_group(who), group.over(share))
            done.append((share, at.update.readings))
            yield share, at
        self.update.readings.take_over(done)

    def average_(self, vector: Vector) -> Vector:
        """Return the mean of a vector over processes. It consumes the vector's storage."""
        return average_(self.update, vector)

    @contextmanager
    def perturbed(self, eps: Vector) -> Iterator[None]:
        """Set the parameters to `w + eps` inside the block, and back to exactly `w` after it.

        The storage of `eps` is consumed, because it becomes the snapshot of the weights. An `eps`
        that is zero or not finite is not applied. The block runs all the same, so that the host
        never has to wait for a value that only the device knows.
        """
        update = self.update
        update.announce("perturb")
        size = eps.norm()
        ok = usable(size)
        held = update.engine.held(update.params)
        if update.rounding == "nearest":
            update.engine.watch(held, eps)
        supports = eps.supports if isinstance(eps, Masked) else None
        # A pending factor is applied while the weights move, which saves a walk over eps.
        entries, factor = eps.hand_over_unscaled()
        how = update.new_rounding(), update.new_snapshot()
        perturbation = Perturbation(held, entries, ok, supports, factor, *how)
        standing = update.readings.standing
        with update.engine.moving(), perturbation:
            standing.append(Standing(perturbation, or_zero(size)))
            try:
                yield
            finally:
                standing.pop()
                update.announce("restore")
        # Only now is the inner product known: it was measured while the weights returned.
        update.readings.of_return(perturbation, update.engine.placement)
