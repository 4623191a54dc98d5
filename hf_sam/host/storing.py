# SPDX-License-Identifier: Apache-2.0
"""Warnings about ways to store perturbed weights that gain nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

LITTLE = 64 << 20
"""Bytes of a snapshot below which nobody needs to put it elsewhere."""

SHARE = 0.05
"""The share of a model's weights below which a snapshot does not matter beside them."""


def useless(
    rounding: str, offload: str, params: Sequence[Tensor], model: nn.Module
) -> Iterator[str]:
    """Yield a warning for each setting that gains nothing.

    Args:
        rounding: `nearest` or `stochastic`.
        offload: `none` or `cpu`.
        params: the parameters that are trained.
        model: the model.
    """
    if rounding == "stochastic" and not any(p.dtype == torch.bfloat16 for p in params):
        yield (
            "sam_rounding='stochastic' has no effect: no weight that is trained is stored in "
            "bfloat16, and others lose nothing of a perturbation."
        )
    if offload == "none":
        return
    if all(p.device.type in ("cpu", "mps") for p in params):
        yield (
            "sam_offload='cpu' gains nothing: the weights that are trained are in the host's "
            "memory anyway."
        )
        return
    bytes_ = sum(p.nbytes for p in params)
    share = bytes_ / max(sum(p.nbytes for p in model.parameters()), 1)
    if bytes_ < LITTLE or share < SHARE:
        yield (
            f"sam_offload='cpu' gains nothing: the weights that are trained take up "
            f"{bytes_ / (1 << 20):.1f} MB, {share:.1%} of the model's, and so much is copied to "
            "the host and back in every update; leave it at 'none'."
        )
