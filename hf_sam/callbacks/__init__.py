# SPDX-License-Identifier: Apache-2.0
"""Callbacks that watch a training run and report on it."""

from .averaging import AveragingCallback
from .memory import MemoryCallback
from .sharpness import SharpnessCallback

__all__ = ["AveragingCallback", "MemoryCallback", "SharpnessCallback"]
