# SPDX-License-Identifier: Apache-2.0
"""Which pass of an update runs, and in which mode the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


class WhichPass(NamedTuple):
    """Which pass of an update runs.

    Attributes:
        kind: "clean" for the first pass of an update, whose records, statistics and log entries
            stay. It looks at the weights as they are, but for methods that have no such pass: their
            first one is "clean" all the same (`rsam` begins at a perturbed point, `ascent_fraction`
            with a part of the batch). Where a method treats groups of examples one by one (`msam`,
            `sam_accumulation="micro"`), each group's first pass is. Any later pass is "descent" if
            it runs at perturbed weights, else "ascent".
        number: counts the passes of an update from 1. It is 0 while the loss is asked what it is,
            before the first update, and for the single examples that `ssam_f` draws.
    """

    kind: str
    number: int


@dataclass
class Pass:
    """The request of a pass to the `compute_loss` that it calls.

    Attributes:
        losses: a list that receives the per-example losses (B,), or None if they are not wanted.
    """

    losses: list[Tensor] | None = None


@contextmanager
def evaluating(model: nn.Module, layers_only: bool = False) -> Iterator[None]:
    """Have a model in evaluation mode; afterwards each of its modules is in the mode it was in.

    Args:
        model: the model.
        layers_only: leave modules that hold others in their mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, mode in modes:
        module.training = mode and layers_only and any(module.children())
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
