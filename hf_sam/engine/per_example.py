# SPDX-License-Identifier: Apache-2.0
"""The loss of every example of a batch, from what a model with a standard head returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .slicing import IGNORED


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
    logits = outputs.get("logits") if isinstance(outputs, dict) else outputs[1]
    if not isinstance(labels, Tensor) or not isinstance(logits, Tensor):
        raise ValueError(_unknown(labels, logits))
    logits = (
        logits.detach().float()
        if logits.dtype in (torch.float16, torch.bfloat16)
        else logits.detach()
    )
    if labels.is_floating_point():
        return _float_labels(logits, labels, config)
    if (
        labels.ndim == 1
        and logits.ndim == 2
        and getattr(config, "problem_type", None) != "regression"
    ):
        if logits.shape[1] == 1:
            return (logits.squeeze(1) - labels).square()
        return _tokens(logits, labels, smoothing)
    if labels.ndim == 2 and logits.ndim == 3:
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


def _float_labels(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Return multi-label or squared losses (B,)."""
    kind = getattr(config, "problem_type", None)
    regression = kind == "regression" or (kind is None and logits[0].numel() == 1)
    if not regression and kind not in (None, "multi_label_classification"):
        raise ValueError(_unknown(labels, logits))
    target = labels.view_as(logits).to(logits.dtype)
    if regression:
        return (logits - target).square().flatten(1).mean(1)
    return (
        functional
        .binary_cross_entropy_with_logits(logits, target, reduction="none")
        .flatten(1)
        .mean(1)
    )


def _unknown(labels: Any, logits: Any) -> str:
    def shape(value: Any) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    return (
        f"the loss of single examples is unknown for labels of {shape(labels)} and logits of "
        f"{shape(logits)}: give "
        "SAMTrainer(per_example_loss_func=f) with f(outputs, labels) -> losses of shape (B,), or "
        "use a method that "
        "needs none, such as sam"
    )
