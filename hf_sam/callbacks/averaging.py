# SPDX-License-Identifier: Apache-2.0
"""A running average of the weights, the free rival of every method that looks for flat minima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback


class AveragingCallback(TrainerCallback):
    """Evaluates, and in the end keeps, an exponential running average of the trained weights.

    Training itself goes on at the weights that the optimizer has, and checkpoints hold those; the
    average starts anew when a training resumes. Costs one copy of the trained weights, two during
    an evaluation.

    Args:
        decay: the average's own share in each update, between 0 and 1.

    Raises:
        ValueError: the decay is not between 0 and 1.

    Example:
        >>> from hf_sam.callbacks import AveragingCallback
        >>> callback = AveragingCallback(0.99)
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"AveragingCallback: decay={decay} is not between 0 and 1")
        self._update = get_ema_multi_avg_fn(decay)
        self._average: list[Tensor] = []
        self._kept: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a new average."""
        self._average, self._kept = [], []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the new weights into the average, and show it if an evaluation comes."""
        params = _trained(kwargs["model"])
        with torch.no_grad():
            if self._average:
                self._update(self._average, [p.detach() for p in params], state.global_step)
            else:
                self._average = [p.detach().clone() for p in params]
        self._show(control, params)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the average if an evaluation comes."""
        self._show(control, _trained(kwargs["model"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the optimizer's weights back, before they are saved or trained on."""
        if self._kept:
            _write(_trained(kwargs["model"]), self._kept)
            self._kept = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the average in the model."""
        if self._average:
            _write(_trained(kwargs["model"]), self._average)

    def _show(self, control: Any, params: Sequence[Tensor]) -> None:
        if control.should_evaluate and self._average and not self._kept:
            self._kept = [p.detach().clone() for p in params]
            _write(params, self._average)


def _trained(model: torch.nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _write(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
