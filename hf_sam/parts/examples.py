# SPDX-License-Identifier: Apache-2.0
"""On which examples."""

from __future__ import annotations

import math

from torch import Tensor


def most(values: Tensor, share: float) -> Tensor:
    """Return the positions of the ceil(share B) largest values, the first ones among equals, in
    ascending order of position.

    Args:
        values: (B,).
        share: of B, above 0 and up to 1; at least one is kept.
    """
    count = min(max(math.ceil(share * len(values) - 1e-9), 1), len(values))
    return values.sort(descending=True, stable=True).indices[:count].sort().values
