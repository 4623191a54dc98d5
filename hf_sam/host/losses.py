# SPDX-License-Identifier: Apache-2.0
"""The losses of single examples, and a measurement of whether a loss is divided by its items."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..landscape.data import IGNORED
from .inputs import Loan

NUMBERS: dict[str | None, Callable[..., Tensor]] = {
    "regression": functional.mse_loss,
    "multi_label_classification": functional.binary_cross_entropy_with_logits,
}
"""The loss functions of labels that are numbers, by a model's `problem_type`."""

GIVE = (
    "give SAMTrainer(per_example_loss_func=f) with f(outputs, labels) -> losses of shape (B,), "
    "where `labels` are all inputs if there is no field of that name, or use a method that needs "
    "none, such as sam"
)
"""The remedy, in messages, if the losses of single examples are unknown."""


class ExampleLosses:
    """The losses of single examples of a Trainer's model, from its outputs and labels.

    Args:
        trainer: the Trainer.
        own: the user's own function `f(outputs, labels)`, or None for the model's kind of loss.
    """

    def __init__(self, trainer: Any, own: Callable[[Any, Tensor], Tensor] | None) -> None:
        self._trainer, self._function = trainer, own

    @property
    def own(self) -> bool:
        """Whether the losses come from the user's own function."""
        return self._function is not None

    def labels(self, inputs: Any) -> Any:
        """Return the labels, or all inputs for a function of the user's own without labels."""
        if self.own and "labels" not in inputs:
            return Loan(inputs).inputs  # a copy, because `compute_loss` may change the inputs
        return inputs.get("labels")

    def __call__(self, outputs: Any, labels: Any) -> Tensor:
        """Return the losses of shape (B,), detached.

        Raises:
            ValueError: the losses are unknown, or the user's own are not of shape (B,).
        """
        if self._function is None:
            trainer = self._trainer
            smoother = trainer.label_smoother
            return per_example_losses(
                outputs,
                labels,
                getattr(trainer.model, "config", None),
                shifted=trainer._loss_shifts_labels,
                smoothing=smoother.epsilon if smoother is not None else 0.0,
            )
        losses = self._function(outputs, labels)
        if isinstance(losses, Tensor) and losses.ndim == 1:
            return losses.detach()
        given = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"per_example_loss_func returned {given}; it must return losses of shape (B,)"
        )


def per_example_losses(
    outputs: Any,
    labels: Tensor | None,
    config: Any,
    *,
    shifted: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the losses of shape (B,), detached, whose (weighted) mean is the batch's loss.

    It knows single-label heads (labels (B,)), multi-label and regression heads (labels (B,) or
    (B, C)), and token classification and language models (labels (B, T), where the loss of a row is
    the mean over its labelled tokens).

    Args:
        outputs: the model's outputs, with `logits`.
        labels: the labels of the batch.
        config: the model's configuration, whose `problem_type` and `num_labels` tell the kinds
            apart.
        shifted: whether the logits at a position predict the next label, as in a causal language
            model.
        smoothing: Trainer's label smoothing factor.

    Raises:
        ValueError: the loss is of another kind.
    """
    logits = _logits(outputs)
    if not isinstance(labels, Tensor) or not isinstance(logits, Tensor):
        raise ValueError(_unknown(labels, logits))
    logits = (
        logits.detach().float()
        if logits.dtype in (torch.float16, torch.bfloat16)
        else logits.detach()
    )
    kind = getattr(config, "problem_type", None)
    if kind is None and getattr(config, "num_labels", 2) == 1 and logits.numel() == labels.numel():
        kind = "regression"  # not every head writes it into its configuration
    if kind == "regression" or labels.is_floating_point():
        return _numbers(logits, labels, kind)
    if logits.ndim == 2 and labels.numel() == len(logits):
        return _tokens(logits, labels.flatten(), smoothing)
    if labels.ndim == 2 and logits.ndim == 3 and logits.shape[:2] == labels.shape:
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = _tokens(logits.flatten(0, 1), labels.flatten(), smoothing).view(labels.shape)
        return losses.sum(1) / labels.ne(IGNORED).sum(1).clamp(min=1)
    raise ValueError(_unknown(labels, logits))


def _tokens(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return cross-entropies (N,) of logits (N, C), and zero for a label that is ignored."""
    return functional.cross_entropy(
        logits, labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )


def _numbers(logits: Tensor, labels: Tensor, kind: str | None) -> Tensor:
    """Return squared or multi-label losses (B,), as the model's `problem_type` says."""
    if logits.numel() != labels.numel() or kind not in NUMBERS:
        raise ValueError(_unknown(labels, logits))
    losses = NUMBERS[kind](logits, labels.view_as(logits).to(logits.dtype), reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _logits(outputs: Any) -> Any:
    """Return the logits of a model output, or of a tuple that may begin with a loss."""
    if isinstance(outputs, dict):
        return outputs.get("logits")
    first = outputs[0]
    return outputs[1] if isinstance(first, Tensor) and first.ndim == 0 else first


def _unknown(labels: Any, logits: Any) -> str:
    def shape(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    return (
        f"the loss of single examples is unknown for labels of {shape(labels)} and logits of "
        f"{shape(logits)}: {GIVE}"
    )


def check_losses(trainer: Any, method: str) -> None:
    """Refuse a method that compares losses of single examples if these are unknown.

    Raises:
        ValueError: the loss is the user's own, or the model takes no `labels`.
    """
    if trainer.compute_loss_func is not None:
        raise ValueError(
            f"{method} compares the losses of single examples, which compute_loss_func does not "
            f"give: {GIVE}"
        )
    names = list(trainer.label_names)
    forward = inspect.signature(trainer.model.forward).parameters.values()
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in forward)
    if "labels" not in names and (names or not anything):
        takes = f"takes {', '.join(names)}" if names else "takes no labels"
        raise ValueError(
            f"{method} compares the losses of single examples, which are known for a field "
            f"`labels`, and {type(trainer.model).__name__} {takes}: {GIVE}"
        )


def share_of_count(trainer: Any, loss_of: Callable[[Tensor], float], n: Tensor) -> float | None:
    """Return `counted_share`, on which all processes agree, and warn of a share between 0 and 1."""
    share = counted_share(loss_of, n)
    if trainer.accelerator.num_processes > 1:
        answer = torch.tensor([math.nan if share is None else share], device=n.device)
        torch.distributed.broadcast(answer, 0)
        share = None if math.isnan(answer.item()) else answer.item()
    if share and share < 0.98:
        trainer._warn(
            f"The loss of {type(trainer.model).__name__} is divided by num_items_in_batch in part "
            f"only ({share:.3f} of it), as with an auxiliary loss. Trainer adds up the rest over "
            "micro-batches, so accumulation shows; methods that cut batches average it, so that at "
            "radius 0 their accumulated gradient is not the plain Trainer's."
        )
    return share


def counted_share(loss_of: Callable[[Tensor], float], n: Tensor) -> float | None:
    """Return which share of the loss halves when the number of items doubles.

    The share is 1 for a loss that is divided by the number and 0 for one that ignores it.

    Args:
        loss_of: a function that returns the loss of one and the same batch for a given number of
            items. It is called a third time to see how far the loss changes by itself.
        n: the number of items, `()`.

    Returns:
        The share, or None if it cannot be determined.
    """
    once, twice, again = loss_of(n), loss_of(2 * n), loss_of(n)
    if not all(map(math.isfinite, (once, twice, again))) or abs(once) < 1e-8:
        return None
    # State that cannot be restored changes the loss, too; the third loss shows by how much.
    drift, middle = abs(again - once), (once + again) / 2
    if drift >= abs(once) / 8:
        return None
    if abs(middle - twice) <= max(1e-3 * abs(once), 3 * drift):
        return 0.0
    return 2 * (middle - twice) / middle
