# SPDX-License-Identifier: Apache-2.0
"""The loss of one update's data as a function of the weights, without a Trainer."""

from .data import Data
from .head import Cotangents, gradient_at_head
from .landscape import Landscape
from .layers import Layer, Pair, changed
from .protocol import Averaging, Backward, BatchOps, Engine, HeadOnly, HeadTap
from .replay import RandomStates, Replay, Restore, Store
from .rounding import ROUNDING, check_rounding
from .snapshot import OFFLOAD
from .sparse import Masked, Support
from .update import Progress, Update

__all__ = [
    "OFFLOAD",
    "ROUNDING",
    "Averaging",
    "Backward",
    "BatchOps",
    "Cotangents",
    "Data",
    "Engine",
    "HeadOnly",
    "HeadTap",
    "Landscape",
    "Layer",
    "Masked",
    "Pair",
    "Progress",
    "RandomStates",
    "Replay",
    "Restore",
    "Store",
    "Support",
    "Update",
    "changed",
    "check_rounding",
    "gradient_at_head",
]
