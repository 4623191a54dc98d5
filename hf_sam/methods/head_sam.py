# SPDX-License-Identifier: Apache-2.0
"""SAM on the output head alone, at the price of plain training."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..landscape import Landscape, gradient_at_head
from ..parts.radius import Rho, factor, relative
from ..vector import Vector
from .base import Method


@dataclass
class HeadSAM(Method):
    """SAM on the output head (logits-SAM). Luo et al., ICLR 2026, arXiv 2603.18258.

    Update::

        Z   = H W' + b, the logits, with H the input of the output head
        G   = dL/dW = (dL/dZ)' H
        eps = rho G / |G|
        u   = gradient of L(Z + H eps'), with eps constant

    That is SAM in which only W is perturbed, yet the trunk runs forward and backward once: G needs
    the loss's own backward alone. The bias is not perturbed. Under LoRA with a frozen head, the
    head is perturbed and not trained; an adapter on the head is perturbed with it, as one matrix.

    Cost: 1 pass, the rest of the loss twice, and three products as large as the head's; no state.
    Memory beyond the logits: at most another copy of them, which is not cut into chunks of the
    vocabulary: the loss is any function of whole rows of logits, and Z has to outlive its backward
    there, for the logits of the perturbed head. With gradient accumulation, or over
    ranks that perturb together, G itself, as large as W. Micro-batches share one perturbation, so
    that accumulation does not show, which takes one more forward of each (1.33 times the time);
    `sam_accumulation="micro"` perturbs for each of them, without that forward.

    Defaults: rho = 0.05, SAM's (the authors take 0.001 for DPO of language models).

    Deviations from the authors' code (RitianLuo/logits-sam-dpo @ b0d47d7): the loss is whatever the
    Trainer computes from the logits, not one of a list; the perturbed logits are float32 where the
    head's are of 16 bits, which would round the perturbation away. `sam_where` does not apply. The
    logged loss is the one at w; what a `compute_loss` of your own logs beside it is of the
    perturbed head, unless micro-batches accumulate.

    When it does not help: where the trunk, not the head, is sharp. A tied embedding is perturbed in
    its use as a head only, so it is not SAM on that matrix. It needs a linear layer whose output
    the loss sees once: fused losses that never make the logits, heads of convolutions and
    similarities of two towers are refused.

    Attributes:
        rho: radius in the head's weight, L2 norm, or a schedule for it.
        head: pattern of the name of the head's module; by default `get_output_embeddings()`, or
            the last linear layer outside of the base model.
    """

    paper = "Luo et al., ICLR 2026, arXiv 2603.18258"
    passes = "1"
    memory = "0, and a copy of the logits"
    use = "SAM where a second pass is too dear: language models, DPO, ZeRO-3"
    needs_here = False
    one_gradient = True
    pretrained_rho = 0.001  # the authors', for language models

    rho: Rho = field(default=0.05, metadata={"help": "radius, L2 norm of the head", "low": 0.0})
    head: str | None = field(default=None, metadata={"help": "pattern of the head's name"})

    def __post_init__(self) -> None:
        """Refuse a radius for each layer, because the head is one layer."""
        super().__post_init__()
        if isinstance(self.rho, relative):
            raise ValueError(
                f"rho={self.rho} is a radius for each of several layers, and head_sam perturbs "
                "one: give the radius as a number"
            )

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at the perturbed head."""
        return gradient_at_head(at, partial(self._factor, at))

    def _factor(self, at: Landscape, norm: Tensor) -> Tensor:
        return factor(self.rho, norm, at)
