# SPDX-License-Identifier: Apache-2.0
"""Functional SAM, whose update leaves the change of the logits' gradient out."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Cotangents, Landscape
from ..parts.radius import Rho, radius
from ..vector import Vector
from .base import Method


@dataclass
class FunctionalSAM(Method):
    """Functional SAM. Singh, Mobahi, Agarwala, Dauphin, 2025, arXiv 2502.02407.

    Update::

        F    = the logits, a function of the weights; J its Jacobian
        here = gradient of L at w
        eps  = rho here / |here|
        u    = J(w + eps)' dL/dF (w)

    SAM's update is J(w + eps)' dL/dF (w + eps). For language models, the authors find, what moves
    it is mostly the change of dL/dF, which makes tokens more certain; this update moves by the
    change of J alone. The logits are the output of the output head.

    Cost: 2 passes, 1 P extra, no state. dL/dF is kept from one pass to the next: as much memory as
    the logits of all micro-batches (`sam_accumulation="micro"`: of one). It is not cut into chunks
    of the vocabulary: all of it is there before the second pass, whatever loss made it.

    Defaults: rho = 0.05, SAM's.

    Deviations: no authors' code was found. What a loss takes from the model beside the logits, as
    an auxiliary loss of experts, has its gradient at w + eps, as in SAM.

    When it does not help: losses of few classes, where SAM itself works. It needs an output head
    that runs once in a pass; see `head_sam`.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        head: pattern of the name of the head's module; by default `get_output_embeddings()`, or
            the last linear layer outside of the base model.
    """

    paper = "Singh et al., 2025, arXiv 2502.02407"
    passes = "2"
    memory = "1, and a copy of the logits"
    use = "pre-training of language models"
    needs_here = False
    pretrained_rho = 0.01

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    head: str | None = field(default=None, metadata={"help": "pattern of the head's name"})

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + eps of the loss's linear approximation at the logits of w."""
        logits = Cotangents()
        here = at.behind_head(logits.keep).ascent(self)
        with at.perturbed(radius(self.rho)(here, at)):
            return at.behind_head(logits.give).gradient()
