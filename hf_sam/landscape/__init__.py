# SPDX-License-Identifier: Apache-2.0
"""The loss of one update's data as a function of the weights, without a Trainer."""

from .data import Data
from .landscape import Landscape
from .layers import Layer, Pair
from .protocol import Averaging, Backward, BatchOps, Engine
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
    "Data",
    "Engine",
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
    "check_rounding",
]
