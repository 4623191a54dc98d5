# SPDX-License-Identifier: Apache-2.0
"""Loss scaling, and a warning about perturbed weights that are stored in 16 bits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sweeps import by_kind, sweep

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


def scale_of(accelerator: Accelerator) -> Tensor | None:
    """Return the `()` scale of accelerate's GradScaler, or None without one."""
    scaler = accelerator.scaler  # looked up each time, because it may be replaced
    # The public `get_scale()` would make the host wait for the device.
    return scaler._scale if scaler is not None and scaler.is_enabled() else None


class LossScaling:
    """Unscales the gradients of passes for a method, and scales its update for GradScaler again.

    GradScaler skips an update if `.grad` is not finite, and so it would miss an overflow in a pass
    that only serves to perturb. Therefore gradients that are not finite are recorded on the device
    in every pass, and if there were any, the update becomes NaN. Trainer's clipping and GradScaler
    then work as usual.

    Args:
        scale: a function that returns the present factor on the losses, or None; see `scale_of`.
    """

    def __init__(self, scale: Callable[[], Tensor | None]) -> None:
        self._scale = scale
        self._overflows: dict[torch.device, Tensor] = {}

    @property
    def scale(self) -> Tensor | None:
        """The `()` factor on this update's losses, or None without loss scaling."""
        return self._scale()

    def start(self) -> None:
        """Forget the overflows of the previous update, because a new one begins."""
        self._overflows = {}

    def unscale_(self, grads: Sequence[Tensor | None]) -> None:
        """Divide the gradients of a pass by the scale in place, and record an overflow."""
        if self.scale is None:
            return
        inverse = self.scale.double().reciprocal().float()  # as GradScaler computes it
        for places in by_kind(grads):
            group: list[Any] = [grads[i] for i in places]
            device = group[0].device
            if device not in self._overflows:
                self._overflows[device] = torch.zeros((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(
                group, self._overflows[device], inverse.to(device, non_blocking=True)
            )

    def overflow(self) -> Tensor | None:
        """Return whether a pass of this update overflowed, as a `()` tensor of 1 or 0.

        The result is None without loss scaling.
        """
        if self.scale is None:
            return None
        device = self.scale.device
        flags = [flag.to(device, non_blocking=True) for flag in self._overflows.values()]
        return torch.stack(flags).amax() if flags else torch.zeros_like(self.scale)

    def scale_(self, update: Sequence[Tensor | None], overflow: Tensor) -> None:
        """Multiply the update in place by the scale, or by NaN after an overflow."""
        assert self.scale is not None
        # GradScaler divides by the scale again, and skips an update that holds a NaN.
        factor = torch.where(overflow > 0, torch.full_like(self.scale, math.nan), self.scale)
        for places in by_kind(update):
            group: list[Any] = [update[i] for i in places]
            torch._foreach_mul_(group, factor.to(group[0].device, non_blocking=True))


class RoundingWatch:
    """Measures once how much of a perturbation survives in 16-bit weights, and logs a warning.

    Args:
        speaks: whether this process writes the warning.
        average_: a function that takes means over processes, each of which measures its own rows.
    """

    def __init__(
        self,
        speaks: bool = True,
        average_: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
    ) -> None:
        self._speaks = speaks
        self._average_ = average_
        self._done = False

    def __call__(self, params: Sequence[Tensor], eps: Sequence[Tensor | None]) -> None:
        """Measure a perturbation that is about to be applied, unless one was measured before."""
        if self._done:
            return
        pairs = [(p.detach(), e) for p, e in zip(params, eps, strict=True) if e is not None]
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p, _ in pairs if p.dtype in HALF})
        if not kinds:
            self._done = bool(pairs)
            return
        cosine, moved = what_rounding_leaves(pairs, self._average_)
        if math.isnan(cosine):  # zero or not finite, so that the next perturbation is measured
            return
        self._done = True
        if self._speaks:
            logger.warning(
                f"Perturbed weights are stored in {' and '.join(kinds)}, which rounds the "
                f"perturbation: {moved:.1%} of them move at all, and the cosine between the wanted "
                f"and the actual perturbation is {cosine:.3f} (1: nothing is lost). Keep trainable "
                "weights in float32: load the model with dtype=torch.float32 and train with "
                "bf16=True (autocast), or train LoRA adapters: float32 over a 16-bit base; "
                "sam_rounding='stochastic' keeps a perturbation of bfloat16 weights on average."
            )


@torch.no_grad()
def what_rounding_leaves(
    pairs: Sequence[tuple[Tensor, Tensor]],
    average_: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
) -> tuple[float, float]:
    """Return how much of a perturbation is left when `p + eps` is stored.

    Args:
        pairs: parameters p and their perturbations eps.
        average_: a function that takes the mean of a tensor over processes, in place.

    Returns:
        The cosine between all eps and all stored steps (p + eps) - p, and the share of elements
        that move. The cosine is 0 if the perturbation is lost completely; both numbers are NaN if
        eps is zero or not finite.
    """
    sums = []
    for group in sweep(*zip(*pairs, strict=True)):
        wide = torch.promote_types(group.pieces[0][0].dtype, torch.float32)  # the step is exact
        for p, e in zip(*(map(torch.flatten, pieces) for pieces in group.pieces), strict=True):
            step, wanted = (e + p).to(p.dtype).to(wide) - p.to(wide), e.to(wide)
            dots = step.dot(wanted), step.dot(step), wanted.dot(wanted)
            counts = step.count_nonzero().to(wide), wanted.new_tensor(step.numel())
            sums.append(torch.stack([*dots, *counts]))
    total = torch.stack([s.to(sums[0].device) for s in sums]).sum(0)
    average_([total])
    along, square, wanted_square, moved, elements = total.tolist()
    if not 0 < wanted_square < math.inf:
        return math.nan, math.nan
    cosine = along / math.sqrt(square * wanted_square) if square > 0 else 0.0
    return cosine, moved / elements
