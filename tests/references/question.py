# SPDX-License-Identifier: Apache-2.0
"""What a reference may know about an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Gradient = Callable[[np.ndarray], np.ndarray]


@dataclass
class Question:
    """One update's data and place in the run.

    Attributes:
        gradient: of the update's mean loss, at any flat weights.
        w: the flat weights; a method that moves them itself writes to them.
        pieces: name, place in the flat vector and shape of each tensor.
        mask: 1 where weights may be perturbed, 0 elsewhere.
        step: updates done before.
        total: updates of the run.
        lr_ratio: learning rate over its maximum.
        seed: of the run.
        batches: numbers of the examples of each micro-batch.
        part: of some of the examples, the gradient of their mean loss at any flat weights.
        losses: of each example, at any flat weights.
        other: of a training example beyond the update's, the gradient at any flat weights.
        rate: the learning rate.
        pairs: of each adapter, the places of A and B in the flat vector, and the scale.
        layer: of the layer with an adapter, the flat gradient and that of the layer's whole weight,
            where a matrix is added to this weight.
        base: the layer's frozen weight.
        outputs: the model's outputs, at any flat weights.
        targets: of the outputs.
        aimed: the gradient for other targets.
        idle: weights of a last tensor, behind the others, that never has a gradient.
    """

    gradient: Gradient
    w: np.ndarray
    pieces: list[tuple[str, slice, tuple[int, ...]]]
    mask: np.ndarray
    step: int = 0
    total: int = 1
    lr_ratio: float = 1.0
    seed: int = 0
    batches: Sequence[Sequence[int]] = ()
    part: Callable[[Sequence[int]], Gradient] | None = None
    losses: Callable[[np.ndarray], np.ndarray] | None = None
    other: Callable[[int], Gradient] | None = None
    rate: float = 0.0
    pairs: Sequence[tuple[slice, slice, float]] = ()
    layer: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    base: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    outputs: Callable[[np.ndarray], np.ndarray] | None = None
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0))
    aimed: Callable[[np.ndarray], Gradient] | None = None
    idle: np.ndarray = field(default_factory=lambda: np.zeros(0))
