# SPDX-License-Identifier: Apache-2.0
"""Where the weights are kept while they are perturbed: on their device, or in the host's memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sweeps import cloned, policy

OFFLOAD = ("none", "cpu")
"""The values of `offload`."""


def check_offload(offload: str) -> None:
    """Refuse a place that there is not.

    Raises:
        ValueError: `offload` is something else.
    """
    if offload not in OFFLOAD:
        raise ValueError(f"offload={offload!r} is not one of {', '.join(OFFLOAD)}")


class OnDevice:
    """Keeps the weights in the storage of what they are perturbed by, which needs no memory.

    Attributes:
        parts: the least number of groups in which weights are moved.
    """

    parts = 0

    def keep(self, weights: list[Tensor], eps: list[Tensor]) -> list[Tensor]:
        """Return copies of the weights. The storage of `eps` may be used for them."""
        if eps[0].dtype != weights[0].dtype:  # it could not hold the weights exactly
            return cloned(weights)
        torch._foreach_copy_(eps, weights)
        return eps

    def take(self, copy: Tensor) -> Tensor:
        """Return a copy of some weights, which nobody else has, where it is to be kept."""
        return copy


class OnHost(OnDevice):
    """Keeps the weights in the host's memory, so that a perturbation takes none of their device.

    The host does not wait: its memory is pinned, and the copies are queued like kernels. Weights
    that are in the host's memory already are kept as `OnDevice` does.
    """

    # A group is the scratch, and there are two of them where a step is measured.
    parts = 32

    def keep(self, weights: list[Tensor], eps: list[Tensor]) -> list[Tensor]:
        """Return copies of the weights in the host's memory."""
        if policy(weights[0].device).eager:
            return super().keep(weights, eps)
        kept = [host_like(w) for w in weights]
        torch._foreach_copy_(kept, weights, non_blocking=True)
        return kept

    def take(self, copy: Tensor) -> Tensor:
        """Return a copy of some weights in the host's memory."""
        return copy if policy(copy.device).eager else self.keep([copy], [copy])[0]


def host_like(tensor: Tensor) -> Tensor:
    """Return memory of the host for a tensor, to and from which a device copies by itself."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type != "cpu")


def beside(kept: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Return what was kept, on the device of the weights."""
    device = weights[0].device
    return [t if t.device == device else t.to(device, non_blocking=True) for t in kept]
