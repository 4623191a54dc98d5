# SPDX-License-Identifier: Apache-2.0
"""The values that the passes of one update yield beside gradients: clean loss and log values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..sums import or_zero
from ..vector import Placement, Selection, Vector
from .perturbation import Perturbation


class Standing(NamedTuple):
    """A perturbation that is applied to the weights now.

    Attributes:
        perturbation: the context that will restore the weights.
        length: its L2 norm, `()`; zero if it was not applied.
    """

    perturbation: Perturbation
    length: Tensor


class Readings:
    """The values that the passes of one update have read so far.

    Attributes:
        loss: the clean loss, `()`, which is the loss of the first pass; None before it.
        latest: the loss of the last pass, `()`; None before the first one.
        present: the parameters that had a gradient in the first pass over all examples.
        values: `()` tensors for the log, by name.
        standing: the perturbations that are applied to the weights now, the outermost first.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.latest: Tensor | None = None
        self.present: Selection | None = None
        self.values: dict[str, Tensor] = {}
        self.standing: list[Standing] = []
        self._comparable = True

    def of_pass(
        self, loss: Tensor, gradient: Vector, *, whole: bool, ascent: bool, cosine: bool
    ) -> None:
        """Read the clean loss from the first pass, and log values from the first perturbed one.

        A method may have one pass only, at a perturbed point. Its loss is then the one there, and
        there is no sharpness.

        Args:
            loss: the loss of the pass, `()`.
            gradient: the gradient of the pass.
            whole: whether the pass looked at all examples, so that its loss may be compared.
            ascent: whether the gradient is the one along which a method perturbs.
            cosine: whether the inner product of step and gradient is wanted.
        """
        self.latest = loss
        first = self.loss is None
        if first:
            self.loss, self._comparable = loss, whole
        if len(self.standing) != 1 or "perturbation_norm" in self.values or (first and ascent):
            return
        perturbation, length = self.standing[0]
        self.values["perturbation_norm"] = length
        if not first and self._comparable:  # the loss of a part of the batch cannot be subtracted
            self.values.setdefault("sharpness", loss - self.loss)  # type: ignore[operator]
        if cosine:
            # The product is measured as the weights return and pass through the cache anyway.
            perturbation.along = gradient

    def of_return(self, perturbation: Perturbation, placement: Placement) -> None:
        """Read the cosine between the step that was taken and the gradient there."""
        if perturbation.along is None or perturbation.along.handed_over:
            return
        along = placement.total(perturbation.displacement_dots)
        lengths = self.values["perturbation_norm"] * perturbation.along.norm()
        self.values["grad_cosine"] = or_zero(along / lengths)

    def skip(self, skipped: Tensor) -> None:
        """Record whether a perturbation was skipped, as a `()` bool tensor on the device."""
        before = self.values.get("skipped")
        self.values["skipped"] = skipped if before is None else before | skipped

    def take_over(self, groups: Sequence[tuple[Any, Readings]]) -> None:
        """Set the readings to the means of those of groups, which are given with their shares."""
        losses = [(share, group.loss) for share, group in groups if group.loss is not None]
        self.loss = sum((share * loss).to(loss) for share, loss in losses)
        whole = sum(share for share, _ in groups)
        # A skip of any group counts, so it is no mean; a schedule within may leave groups out.
        for name in {name for _, group in groups for name in group.values} - {"skipped"}:
            read = [(share, g.values[name]) for share, g in groups if name in g.values]
            self.values[name] = sum(share / whole * value for share, value in read)
        for _, group in groups:
            if "skipped" in group.values:
                self.skip(group.values["skipped"])
