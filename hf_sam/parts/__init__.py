# SPDX-License-Identifier: Apache-2.0
"""The parts of methods: when, where, along which direction and how far to perturb, and what then.

They combine: `Composed(chain(minus_average(), radius(0.1), fisher_mask(0.5)))`. Only `linear` is
not exported, because there are two: `hf_sam.parts.when.linear` is a probability, and
`hf_sam.parts.radius.linear` is a radius.
"""

from .combine import Combine, rescaled, there_only
from .direction import Direction, average, chain, minus_average
from .masks import Mask, dynamic_mask, fisher_mask
from .radius import (
    RhoSchedule,
    adaptive_radius,
    budget,
    cosine,
    layer_radius,
    loss,
    lr,
    radius,
    relative,
)
from .stale import momentum, previous
from .when import (
    Planned,
    Schedule,
    adaptive,
    after,
    after_warmup,
    always,
    before,
    between,
    constant,
    decay,
    every,
    learning,
    piecewise,
    trigonometric,
)

__all__ = [
    "Combine",
    "Direction",
    "Mask",
    "Planned",
    "RhoSchedule",
    "Schedule",
    "adaptive",
    "adaptive_radius",
    "after",
    "after_warmup",
    "always",
    "average",
    "before",
    "between",
    "budget",
    "chain",
    "constant",
    "cosine",
    "decay",
    "dynamic_mask",
    "every",
    "fisher_mask",
    "layer_radius",
    "learning",
    "loss",
    "lr",
    "minus_average",
    "momentum",
    "piecewise",
    "previous",
    "radius",
    "relative",
    "rescaled",
    "there_only",
    "trigonometric",
]
