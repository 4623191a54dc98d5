# SPDX-License-Identifier: Apache-2.0
"""The methods, one file for each paper."""

from .ae_sam import AESAM as AESAM
from .asam import ASAM as ASAM
from .bar import BAR as BAR
from .base import Method as Method
from .bi_lora import BiLoRA as BiLoRA
from .bilateral_sam import BilateralSAM as BilateralSAM
from .composed import Composed as Composed
from .esam import ESAM as ESAM
from .flat_lora import FlatLoRA as FlatLoRA
from .friendly_sam import FriendlySAM as FriendlySAM
from .functional_sam import FunctionalSAM as FunctionalSAM
from .gsam import GSAM as GSAM
from .head_sam import HeadSAM as HeadSAM
from .late_sam import LateSAM as LateSAM
from .looksam import LookSAM as LookSAM
from .momentum_sam import MomentumSAM as MomentumSAM
from .msam import MSAM as MSAM
from .msam import PerGroup as PerGroup
from .plain import Plain as Plain
from .previous_sam import PreviousSAM as PreviousSAM
from .rehearsal import asks as asks
from .rsam import RSAM as RSAM
from .sam import SAM as SAM
from .ss_sam import SSSAM as SSSAM
from .ssam_d import SparseSAMDynamic as SparseSAMDynamic
from .ssam_f import SparseSAMFisher as SparseSAMFisher
from .stable_sam import StableSAM as StableSAM
from .tail_sam import TailSAM as TailSAM
from .vasso import VaSSO as VaSSO
from .when import When as When
from .wsam import WSAM as WSAM

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
    "tail_sam": TailSAM,
    "momentum_sam": MomentumSAM,
    "previous_sam": PreviousSAM,
    "ae_sam": AESAM,
    "wsam": WSAM,
    "gsam": GSAM,
    "vasso": VaSSO,
    "bar": BAR,
    "head_sam": HeadSAM,
    "functional_sam": FunctionalSAM,
    "bi_lora": BiLoRA,
    "flat_lora": FlatLoRA,
}

WRAPPERS = (Composed, PerGroup, When)
"""Methods without a key, which are built from others in Python."""
