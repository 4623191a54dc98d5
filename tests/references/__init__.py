# SPDX-License-Identifier: Apache-2.0
"""Every method once more: slow and obvious, on one flat float64 vector, from the formula.

A reference is built with a method's options and called with a `Question` per update; it returns the
update. It shares no code with hf_sam, so that a mistake has to be made twice to go unseen.
"""

from tests.references.asam import asam
from tests.references.bilateral_sam import bilateral_sam
from tests.references.esam import esam
from tests.references.friendly_sam import friendly_sam
from tests.references.late_sam import late_sam
from tests.references.looksam import looksam
from tests.references.msam import msam
from tests.references.question import Question
from tests.references.rsam import rsam
from tests.references.sam import sam
from tests.references.ss_sam import ss_sam
from tests.references.ssam_d import ssam_d
from tests.references.ssam_f import ssam_f
from tests.references.stable_sam import stable_sam

REFERENCES = {
    "sam": sam,
    "asam": asam,
    "ssam_f": ssam_f,
    "ssam_d": ssam_d,
    "msam": msam,
    "ss_sam": ss_sam,
    "esam": esam,
    "rsam": rsam,
    "looksam": looksam,
    "friendly_sam": friendly_sam,
    "stable_sam": stable_sam,
    "bilateral_sam": bilateral_sam,
    "late_sam": late_sam,
}

__all__ = ["REFERENCES", "Question"]
