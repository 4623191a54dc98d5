# SPDX-License-Identifier: Apache-2.0
"""Sparse SAM: with a Fisher mask (SSAM-F), with a dynamic mask (SSAM-D)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..parts.direction import Direction, chain
from ..parts.masks import dynamic_mask, fisher_mask
from ..parts.radius import radius
from .sam import SAM

SPARSITY = {"help": "share of weights not perturbed", "low": 0, "high": 1}
INTERVAL = {
    "help": "updates between masks; default one epoch",
    "low": 1,
    "whole": True,
    "optional": True,
}


@dataclass
class SparseSAMFisher(SAM):
    """Sparse SAM with a Fisher mask. Mi et al., NeurIPS 2022, arXiv 2210.05177.

    Update::

        F     = mean over drawn examples of (gradient of the example's loss)^2     (at a mask's
        renewal) mask  = the (1 - sparsity) N weights of the largest F
        here  = gradient of L at w
        eps   = mask * rho here / |here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes; extra memory (1 - sparsity) P, as only what is perturbed needs a snapshot (1 P
    when `unstructured` on CPU, where gathering single weights takes too long), and the mask (one
    byte per weight: 0.25 P in float32; one per tensor under `structured`); at a renewal
    `fisher_samples` passes of one example, and 2 P and the mask for a moment. No time is saved
    without sparse kernels. State: the mask and the update of its last renewal.

    Defaults: rho = 0.05, sparsity = 0.5, 128 examples, renewal once per epoch; the authors' recipes
    use 16 to 1024.

    Deviations from the authors' code (Mi-Peng/Sparse-Sharpness-Aware-Minimization @ 76974fd): the
    first mask comes before the first perturbation (there, the first update is plain SGD with an
    all-zero mask); the examples are drawn by (seed, update), pass through the model without dropout
    and leave norm statistics alone (there, they run in training mode, one by one, through batch
    norm); over ranks the squares are averaged, not the gradients. Norm over the full gradient,
    before masking, as there: |eps| <= rho.

    When it does not help: as a way to save time. Below some ten million trainable weights
    (adapters) a mask has little to choose from.

    Attributes:
        rho: radius, weight-space L2 norm of the unmasked perturbation, or a schedule for it.
        sparsity: share of the weights that is not perturbed; 0 is SAM, 1 the plain Trainer.
        fisher_samples: examples per mask.
        update_interval: updates between renewals of the mask; None is one epoch.
        pattern: `unstructured`, `structured` (whole tensors), or `n:m` along the input dimension.
    """

    paper = "Mi et al., NeurIPS 2022, arXiv 2210.05177"
    passes = "2 + examples at a new mask"
    memory = "0.5 structured, 0.75 n:m or on GPU, else 1.25; 2 at a new mask"
    use = "SAM with half the perturbed weights; less memory with pattern=structured"

    sparsity: float = field(default=0.5, metadata=SPARSITY)
    fisher_samples: int = field(
        default=128, metadata={"help": "examples per mask", "low": 1, "whole": True}
    )
    update_interval: int | None = field(default=None, metadata=INTERVAL)
    pattern: str = field(
        default="unstructured", metadata={"help": "unstructured, structured, or n:m such as 2:4"}
    )

    def default_ascent(self) -> Direction:
        """Return the mask after the radius: the norm is the full gradient's."""
        mask = fisher_mask(self.sparsity, self.update_interval, self.fisher_samples, self.pattern)
        return chain(radius(self.rho), mask)


@dataclass
class SparseSAMDynamic(SAM):
    """Sparse SAM with a dynamic mask. Mi et al., NeurIPS 2022, arXiv 2210.05177.

    Update::

        mask  = random at first; at a renewal its least weights are exchanged for others
        here  = gradient of L at w
        eps   = mask * rho here / |here|
        there = gradient of L at w + eps
        u     = there

    Cost: 2 passes; extra memory (1 - sparsity) P on GPU, as only what is perturbed needs a
    snapshot, 1 P on CPU, where gathering single weights takes too long; and the mask (one byte per
    weight: 0.25 P in float32); at a renewal 1 P and three masks for a moment. State: the mask and
    the update of its last renewal.

    Defaults: rho = 0.05, sparsity = 0.5, drop_rate = 0.5 (of the live weights, falling along half a
    cosine to 0), dropped by gradient, grown at random, renewal once per epoch: the authors' command
    line.

    Deviations from the authors' code (Mi-Peng/Sparse-Sharpness-Aware-Minimization @ 76974fd): what
    is dropped and what is grown are disjoint and equally many, so the live count never changes
    (there, it shrinks where the live share times the drop rate exceeds the sparsity); weights are
    compared at w (there, at w + eps).

    When it does not help: as a way to save time.

    Attributes:
        rho: radius, weight-space L2 norm of the unmasked perturbation, or a schedule for it.
        sparsity: share of the weights that is not perturbed; 0 is SAM, 1 the plain Trainer.
        drop_rate: share of the live weights exchanged at the first renewal.
        drop: score by which live weights stay: `gradient` or `weight`.
        growth: score by which others come: `random` or `gradient`.
        update_interval: updates between renewals of the mask; None is one epoch.
    """

    paper = "Mi et al., NeurIPS 2022, arXiv 2210.05177"
    passes = "2"
    memory = "0.75 on GPU, else 1.25; 1.75 at a new mask"
    use = "Sparse SAM without extra passes for its mask"

    sparsity: float = field(default=0.5, metadata=SPARSITY)
    drop_rate: float = field(
        default=0.5, metadata={"help": "share exchanged at first", "low": 0, "high": 1}
    )
    drop: str = field(
        default="gradient", metadata={"help": "score to keep", "choices": ("gradient", "weight")}
    )
    growth: str = field(
        default="random", metadata={"help": "score to grow", "choices": ("random", "gradient")}
    )
    update_interval: int | None = field(default=None, metadata=INTERVAL)

    def default_ascent(self) -> Direction:
        """Return the mask after the radius: the norm is the full gradient's."""
        mask = dynamic_mask(
            self.sparsity, self.update_interval, self.drop_rate, self.drop, self.growth
        )
        return chain(radius(self.rho), mask)
