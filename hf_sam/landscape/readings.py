# SPDX-License-Identifier: Apache-2.0
"""What the passes of one update find on their way: the clean loss, and values for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..vector import Placement, Selection, Vector
from .perturbation import Perturbation


class Standing(NamedTuple):
    """A perturbation that stands in the weights now.

    Attributes:
        perturbation: what will restore the weights.
        length: its L2 norm, `()`; zero where it was not applied.
    """

    perturbation: Perturbation
    length: Tensor


class Readings:
    """What the passes of one update have found so far.

    Attributes:
        loss: the clean loss, `()`: that of the first pass. None before it.
        present: the parameters that had a gradient in the first pass over all examples.
        values: `()` tensors for the log, by name.
        standing: the perturbations that stand in the weights now, the outermost first.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.present: Selection | None = None
        self.values: dict[str, Tensor] = {}
        self.standing: list[Standing] = []
        self._comparable = True

    def of_pass(self, loss: Tensor, gradient: Vector, *, whole: bool, cosine: bool) -> None:
        """Read the clean loss from the first pass, the others from the first perturbed one.

        Args:
            loss: the pass's, `()`.
            gradient: what it found.
            whole: whether the pass looked at all examples, so that its loss may be compared.
            cosine: whether the inner product of step and gradient is wanted.
        """
        if self.loss is None:
            self.loss, self._comparable = loss, whole
        elif len(self.standing) == 1 and "perturbation_norm" not in self.values:
            perturbation, length = self.standing[0]
            self.values["perturbation_norm"] = length
            if self._comparable:
                self.values.setdefault("sharpness", loss - self.loss)
            if cosine:
                # Measured on the way back, when all weights pass through the cache anyway.
                perturbation.along = gradient

    def of_return(self, perturbation: Perturbation, placement: Placement) -> None:
        """Read the cosine of the step that was taken and the gradient that was found there."""
        if perturbation.along is None or perturbation.along.handed_over:
            return
        along = placement.total(perturbation.displacement_dots)
        lengths = self.values["perturbation_norm"] * perturbation.along.norm()
        none = torch.zeros_like(along)
        self.values["grad_cosine"] = torch.where(lengths > 0, along / lengths, none)

    def skip(self, skipped: Tensor) -> None:
        """Note (a `()` bool tensor) that a direction had no length to perturb along."""
        before = self.values.get("skipped")
        self.values["skipped"] = skipped if before is None else before | skipped

    def take_over(self, groups: Sequence[tuple[Any, Readings]]) -> None:
        """Take over what groups of the examples have found, given with their shares."""
        losses = [(share, group.loss) for share, group in groups if group.loss is not None]
        self.loss = sum((share * loss).to(loss) for share, loss in losses)
        whole = sum(share for share, _ in groups)
        for name in {name for _, group in groups for name in group.values} - {"skipped"}:
            read = [(share, g.values[name]) for share, g in groups if name in g.values]
            self.values[name] = sum(share / whole * value for share, value in read)
        for _, group in groups:
            if "skipped" in group.values:
                self.skip(group.values["skipped"])
