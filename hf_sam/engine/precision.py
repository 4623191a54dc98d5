# SPDX-License-Identifier: Apache-2.0
"""Loss scaling: a method sees unscaled gradients, Trainer's clipping and GradScaler see what they expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def loss_scale(scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """Return the scale that the losses of this update are multiplied by, as a tensor, or None without a scaler.

    `get_scale()` would wait for the device; the scale is constant within an update.
    """
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler._scale


def rescale_(tensors: Sequence[Tensor | None], scale: Tensor, inverse: bool = False) -> None:
    """Multiply (or divide) the tensors by the scale in place; scales are powers of two, so this is exact."""
    present = [t for t in tensors if t is not None]
    for device in {t.device for t in present}:
        group = [t for t in present if t.device == device]
        factor = scale.to(device, non_blocking=True)
        torch._foreach_mul_(group, factor.reciprocal() if inverse else factor)
