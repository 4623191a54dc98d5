# SPDX-License-Identifier: Apache-2.0
"""Sharpness of the loss around a solution: numbers, slices along lines, and pictures."""

from __future__ import annotations

from .average import AverageSharpness, average_sharpness
from .barrier import Barrier, barrier
from .curvature import Curvature, curvature
from .measures import Sharpness, Surface, evaluating, model_loss, sharpness
from .plots import Panel, draw
from .slices import Slice, gradient_direction, loss_slice, random_direction

__all__ = [
    "AverageSharpness",
    "Barrier",
    "Curvature",
    "Panel",
    "Sharpness",
    "Slice",
    "Surface",
    "average_sharpness",
    "barrier",
    "curvature",
    "draw",
    "evaluating",
    "gradient_direction",
    "loss_slice",
    "model_loss",
    "random_direction",
    "sharpness",
]
