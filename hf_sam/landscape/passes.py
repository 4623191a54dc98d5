# SPDX-License-Identifier: Apache-2.0
"""One pass: forward and backward over the micro-batches of some data, averaged over processes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from ..vector import Selection, Vector
from .data import Data
from .protocol import Averaging, HeadTap
from .update import Update


def run_pass(
    update: Update,
    data: Data,
    *,
    whole: bool = True,
    only: Selection | None = None,
    ascent: bool = False,
    to_perturb: bool = False,
    losses: list[Tensor] | None = None,
    head: HeadTap | None = None,
) -> Vector:
    """Return the gradient of the data's loss where the weights stand now, and read its loss.

    Args:
        update: the update that the pass belongs to.
        data: the data of the pass.
        whole: whether this is all of the update's data.
        only: mask of the parameters whose gradient is computed, which saves the work of the others.
        ascent: whether the gradient is the one along which a method perturbs.
        to_perturb: whether that gradient is used for nothing but a perturbation, so that it may
            stay this process's own.
        losses: a list that receives the per-example losses, (B,) per micro-batch, if wanted.
        head: what stands behind the output head, if anything.
    """
    engine, readings = update.engine, update.readings
    apart = ascent and update.two_losses
    flags = {"with_losses": losses is not None, "head": head, "ascending": apart}
    who = engine.averaging(update.averaging, to_perturb=to_perturb, partial=only is not None)
    for param in update.params:
        param.grad = None  # a gradient that an earlier update left is no part of this one
    # The pass of another loss comes before the first pass, and leaves no trace.
    around = engine.replay.no_trace() if apart else update.replay()
    with around, engine.passes(update.params, only):
        loss = _backward(update, data, who, losses, flags)
        gradient = Vector(engine.take_grads(update.params), engine.placement)
    # Some engines compute all gradients whatever is asked for.
    gradient = gradient if only is None else gradient.on(only)
    if who is Averaging.AFTER_PASS:
        gradient = average_(update, gradient)
    # Only a whole, averaged gradient shows which parameters have one, equally on all processes.
    seen = only is None and whole and who is not Averaging.NEVER and not apart
    if readings.present is None and seen:
        readings.present = gradient.selection
    gradient = on_present(update, gradient)
    if apart:
        readings.values["ascent_loss"] = loss
    else:
        readings.of_pass(loss, gradient, whole=whole, ascent=ascent, cosine=update.cosine)
    return gradient


def _backward(
    update: Update,
    data: Data,
    who: Averaging,
    losses: list[Tensor] | None,
    flags: dict[str, Any],
) -> Tensor:
    """Run forward and backward over all micro-batches; return the `()` loss."""
    total = None
    asked = {name: value for name, value in flags.items() if value}
    together = who is Averaging.IN_BACKWARD
    for i, (batch, share) in enumerate(zip(data.batches, data.weights, strict=True)):
        # Processes communicate in the last backward only, when each has added up its gradients.
        talk = together and i == len(data.batches) - 1
        with nullcontext() if talk else update.engine.no_sync(own=not together):
            loss = update.backward(batch, share, **asked)
        if losses is not None:
            loss, singles = loss
            losses.append(singles)
        total = loss if total is None else total + loss
    assert total is not None, "data without a batch have no loss"
    return total


def on_present(update: Update, vector: Vector) -> Vector:
    """Return the vector with `None` where the update's first whole pass had no gradient."""
    present = update.readings.present
    return vector if present is None else vector.on(present)


def average_(update: Update, vector: Vector) -> Vector:
    """Return the mean of a vector over processes. It consumes the vector's storage.

    An entry that is missing on some of the processes counts as zero on them.
    """
    means = update.engine.average_gradients_(update.params, vector.hand_over())
    return Vector(means, update.engine.placement)
