# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed with ZeRO-3, whose weights nobody sees between passes: for methods of one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..landscape import Averaging
from .accelerated import AcceleratedEngine


class PartitionedEngine(AcceleratedEngine):
    """The engine under DeepSpeed with ZeRO-3.

    Each rank holds a part of every weight, and DeepSpeed gathers a layer's weights while the layer
    runs. So nothing outside of a forward can perturb them, and no gradient can be taken out or
    handed in. What remains is one pass per update: its backward is DeepSpeed's own, which adds up,
    averages, clips and steps. A method may transform the loss of that pass; its update is the
    pass's gradient, of which the method sees nothing.
    """

    def params(self, optimizer: Any) -> list[Tensor]:
        """Return the trainable parameters, which between passes are empty."""
        zero: Any = self.model.optimizer
        return [p for group in zero.fp16_groups for p in group]

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return that the backward averages, whatever the method would like."""
        return Averaging.IN_BACKWARD

    @contextmanager
    def no_sync(self, own: bool = False) -> Iterator[None]:
        """Surround a pass after which DeepSpeed does not step yet."""
        state = self._accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(before)

    def take_grads(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Return no gradients: DeepSpeed has taken them, and has stepped."""
        return [None for _ in params]

    def give(self, params: Sequence[Tensor], update: Sequence[Tensor | None]) -> Tensor | None:
        """Do nothing: the update is the pass's gradient, with which DeepSpeed has stepped."""
        return None
