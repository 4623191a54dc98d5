# SPDX-License-Identifier: Apache-2.0
"""What a reference may know about an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class Question:
    """One update's data and place in the run.

    Attributes:
        gradient: of the update's mean loss, at any flat weights.
        w: the flat weights.
        pieces: name, place in the flat vector and shape of each tensor.
        mask: 1 where weights may be perturbed, 0 elsewhere.
        step: updates done before.
        total: updates of the run.
        lr_ratio: learning rate over its maximum.
        seed: of the run.
    """

    gradient: Callable[[np.ndarray], np.ndarray]
    w: np.ndarray
    pieces: list[tuple[str, slice, tuple[int, ...]]]
    mask: np.ndarray
    step: int = 0
    total: int = 1
    lr_ratio: float = 1.0
    seed: int = 0
