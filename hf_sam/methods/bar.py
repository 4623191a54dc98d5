# SPDX-License-Identifier: Apache-2.0
"""Balancedness-aware regularization of low-rank adapters (BAR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape, Pair
from ..vector import Numbers, Vector
from .base import Method


@dataclass
class BAR(Method):
    """Balancedness-Aware Regularization (BAR). Li, Zhang, He, NeurIPS 2024, arXiv 2410.14802.

    Update::

        u = gradient of L at w
        for each pair of factors B, A, before the optimizer's step, with s = alpha eta:
            nBAR: if |u_B| >= |u_A|: B *= 1 + s and A *= 1 - s, else B *= 1 - s and A *= 1 + s
            oBAR: if |B| >= |A|:     B *= 1 - s and A *= 1 + s, else B *= 1 + s and A *= 1 - s

    eta is the learning rate, and alpha falls from mu to zero over the run. In a product B A, SAM
    drives |B|^2 - |A|^2 towards zero. BAR does this by itself, without a second gradient, and
    changes the product by the factor 1 - s^2 alone. It works on LoRA adapters only.

    Cost: 1 pass, no extra memory, no state.

    Defaults: nBAR, which is the better one in most of the paper's tables; mu = 0.5 with a linear
    fall, from the middle of its grids (0.2 to 2 for RoBERTa and OPT, 0.1 to 0.3 for GPT-2).

    Deviations: none known; it was written from the paper. With several learning rates, eta is the
    largest one. A pair of which one factor is frozen, or left out by `sam_where`, is left alone,
    and so are all pairs in an update whose gradient is not finite.

    When it does not help: adapters stored in 16 bits, where a factor this close to 1 rounds to 1;
    weight decay, which the authors set to zero for small tasks.

    Attributes:
        mu: alpha at the beginning, relative to the learning rate; 0 is the plain Trainer.
        decay: how alpha falls over the run.
        balance: what is compared: the norms of the gradients (nBAR) or of the weights (oBAR).
    """

    paper = "Li et al., NeurIPS 2024, arXiv 2410.14802"
    passes = "1"
    memory = "0"
    use = "LoRA adapters, at the price of plain training"
    needs_here = True

    mu: float = field(
        default=0.5,
        metadata={
            "help": "strength at the beginning",
            "low": 0.0,
            "grid": (0.1, 0.2, 0.5, 1.0, 2.0),
        },
    )
    decay: str = field(
        default="linear",
        metadata={"help": "fall of the strength", "choices": ("linear", "cosine", "constant")},
    )
    balance: str = field(
        default="gradients",
        metadata={
            "help": "nBAR or oBAR",
            "choices": ("gradients", "weights"),
            "grid": ("gradients", "weights"),
        },
    )

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w, and scale the factors of all pairs."""
        here, s = at.gradient(), self.strength(at)
        present = here.selection
        pairs = [p for layer in at.layers() for p in layer.pairs if present[p.a] and present[p.b]]
        if not pairs:
            return here
        size = here.norm()
        ok = torch.isfinite(size) & (size > 0)
        at.skip(~ok)
        step = torch.where(ok, s, torch.zeros_like(size))
        factors = at.weights().on(_members(pairs, len(here)))
        at.readings["perturbation_norm"] = step * factors.norm()
        compared = here if self.balance == "gradients" else factors
        at.scale_(self.scales(pairs, compared.norms(), step))
        return here

    def strength(self, at: Landscape) -> float:
        """Return s = alpha eta for this update."""
        x = at.progress.fraction
        fall = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "constant": 1.0}
        s = self.mu * fall[self.decay] * at.rate()
        if s >= 1:
            raise ValueError(
                f"BAR: mu={self.mu} times the learning rate is {s:.3g}, and a factor of "
                f"1 - {s:.3g} would turn an adapter round: choose mu below 1 / learning_rate"
            )
        return s

    def scales(self, pairs: Sequence[Pair], sizes: Numbers, s: Tensor) -> Numbers:
        """Return what each parameter is multiplied by, None for those of no pair.

        Args:
            pairs: the pairs.
            sizes: the norm of what is compared, for each parameter.
            s: the strength, `()`.
        """
        a, b = (_stacked(sizes, at) for at in ([p.a for p in pairs], [p.b for p in pairs]))
        grows = b >= a if self.balance == "gradients" else b < a
        up, down = (torch.where(yes, 1 + s, 1 - s).unbind() for yes in (grows, ~grows))
        scales: Numbers = [None] * len(sizes)
        for pair, of_a, of_b in zip(pairs, down, up, strict=True):
            scales[pair.a], scales[pair.b] = of_a, of_b
        return scales


def _members(pairs: Sequence[Pair], count: int) -> list[bool]:
    """Return the mask of the parameters that belong to a pair."""
    some = {i for pair in pairs for i in (pair.a, pair.b)}
    return [i in some for i in range(count)]


def _stacked(sizes: Numbers, places: Sequence[int]) -> Tensor:
    """Return the `()` numbers at some places as one tensor."""
    return torch.stack([size for size in (sizes[i] for i in places) if size is not None])
