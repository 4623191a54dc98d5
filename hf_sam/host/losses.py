# SPDX-License-Identifier: Apache-2.0
"""What a model's loss is: the loss of every single example, and whether it counts items."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..landscape.data import IGNORED

NUMBERS: dict[str | None, Callable[..., Tensor]] = {
    "regression": functional.mse_loss,
    "multi_label_classification": functional.binary_cross_entropy_with_logits,
}
"""The losses of labels that are numbers, by a model's `problem_type`."""

GIVE = (
    "give SAMTrainer(per_example_loss_func=f) with f(outputs, labels) -> losses of shape (B,), "
    "where `labels` are all inputs if there is no field of that name, or use a method that needs "
    "none, such as sam"
)
"""What to do where the losses of single examples are unknown."""


def per_example_losses(
    outputs: Any,
    labels: Tensor | None,
    config: Any,
    *,
    shifted: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the losses of shape (B,), detached, whose (weighted) mean is the batch's loss.

    Knows single-label (labels (B,)), multi-label and regression heads (labels (B,) or (B, C)), and
    token classification and language models (labels (B, T): the mean over a row's labelled tokens).

    Args:
        outputs: the model's outputs, with `logits`.
        labels: the labels as the batch had them.
        config: the model's configuration, whose `problem_type` and `num_labels` tell the kinds
            apart.
        shifted: the logits at a position predict the next label, as in a causal language model.
        smoothing: Trainer's label smoothing factor.

    Raises:
        ValueError: a loss of another kind.
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
        kind = "regression"  # which not every head writes down
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
    """Return cross-entropies (N,) of logits (N, C), zero where the label is to be left out."""
    return functional.cross_entropy(
        logits, labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )


def _numbers(logits: Tensor, labels: Tensor, kind: str | None) -> Tensor:
    """Return squared or multi-label losses (B,); the model has written down which in `kind`."""
    if logits.numel() != labels.numel() or kind not in NUMBERS:
        raise ValueError(_unknown(labels, logits))
    losses = NUMBERS[kind](logits, labels.view_as(logits).to(logits.dtype), reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _logits(outputs: Any) -> Any:
    """Return the logits of a model output, or of a tuple, in which a loss may come first."""
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
    """Refuse a method that compares losses of single examples where nobody can know them.

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
    # A state that nobody can put back moves the loss, too: how much, the first question tells.
    drift, middle = abs(again - once), (once + again) / 2
    if drift >= abs(once) / 8:
        return None
    if abs(middle - twice) <= max(1e-3 * abs(once), 3 * drift):
        return 0.0
    return 2 * (middle - twice) / middle
