# SPDX-License-Identifier: Apache-2.0
"""The methods: one paper, one file."""

from .asam import ASAM
from .base import Method
from .bilateral import BilateralSAM
from .esam import ESAM
from .friendly import FriendlySAM
from .late import LateSAM
from .looksam import LookSAM
from .msam import MSAM, PerGroup
from .plain import Plain
from .rsam import RSAM
from .sam import SAM
from .ss_sam import SSSAM
from .ssam import SparseSAMDynamic, SparseSAMFisher
from .stable import StableSAM
from .when import When

METHODS: dict[str, type[Method]] = {
    "none": Plain,
    "sam": SAM,
    "asam": ASAM,
    "ssam_f": SparseSAMFisher,
    "ssam_d": SparseSAMDynamic,
    "msam": MSAM,
    "ss_sam": SSSAM,
    "esam": ESAM,
    "rsam": RSAM,
    "looksam": LookSAM,
    "friendly_sam": FriendlySAM,
    "stable_sam": StableSAM,
    "bilateral_sam": BilateralSAM,
    "late_sam": LateSAM,
}

__all__ = [
    "ASAM",
    "ESAM",
    "METHODS",
    "MSAM",
    "RSAM",
    "SAM",
    "SSSAM",
    "BilateralSAM",
    "FriendlySAM",
    "LateSAM",
    "LookSAM",
    "Method",
    "PerGroup",
    "Plain",
    "SparseSAMDynamic",
    "SparseSAMFisher",
    "StableSAM",
    "When",
]
