# SPDX-License-Identifier: Apache-2.0
"""Loss scaling, and weights that are stored in 16 bits."""

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
    """Return the `()` scale of accelerate's GradScaler, None without one.

    It stays on the device; `get_scale()` would wait for it. The scaler is looked up each time, as
    it may be replaced.
    """
    scaler = accelerator.scaler
    return scaler._scale if scaler is not None and scaler.is_enabled() else None


class LossScaling:
    """Stands between a method, which sees unscaled gradients, and Trainer's GradScaler, if any.

    GradScaler skips an update by what it finds in `.grad`, and so it would not see an overflow in
    a pass that only served to perturb. Therefore non-finite gradients are noted in every pass, on
    the device, and the update that is written back is NaN if any was found. Trainer's clipping
    and GradScaler then do what they do anyway.

    Args:
        scale: returns the factor on the losses of now, None without any; see `scale_of`.
    """

    def __init__(self, scale: Callable[[], Tensor | None]) -> None:
        self._scale = scale
        self._found: dict[torch.device, Tensor] = {}

    @property
    def scale(self) -> Tensor | None:
        """The `()` factor on this update's losses, None without any."""
        return self._scale()

    def start(self) -> None:
        """Forget what was found: a new update begins."""
        self._found = {}

    def unscale_(self, grads: Sequence[Tensor | None]) -> None:
        """Divide the gradients of a pass by the scale in place, and note non-finite ones."""
        if self.scale is None:
            return
        inverse = self.scale.double().reciprocal().float()  # as GradScaler computes it
        for places in by_kind(grads):
            group: list[Any] = [grads[i] for i in places]
            device = group[0].device
            if device not in self._found:
                self._found[device] = torch.zeros((), device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(
                group, self._found[device], inverse.to(device, non_blocking=True)
            )

    def overflow(self) -> Tensor | None:
        """Return a `()` tensor, 1 if any pass of this update had a non-finite gradient, else 0.

        None without a scaler.
        """
        if self.scale is None:
            return None
        notes = [found.to(self.scale.device, non_blocking=True) for found in self._found.values()]
        return torch.stack(notes).amax() if notes else torch.zeros_like(self.scale)

    def scale_(self, update: Sequence[Tensor | None], overflow: Tensor) -> None:
        """Multiply the update by the scale in place, by NaN after an overflow."""
        assert self.scale is not None
        factor = torch.where(overflow > 0, torch.full_like(self.scale, math.nan), self.scale)
        for places in by_kind(update):
            group: list[Any] = [update[i] for i in places]
            torch._foreach_mul_(group, factor.to(group[0].device, non_blocking=True))


class RoundingWatch:
    """Measures once how much of a perturbation survives in weights stored in 16 bits, and says so.

    Args:
        speaks: whether this process writes the warning.
        average_: takes means over processes, each of which looks at what it holds.
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
        """Look at a perturbation about to be applied; wait for a finite one that is not 0."""
        if self._done:
            return
        pairs = [(p.detach(), e) for p, e in zip(params, eps, strict=True) if e is not None]
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p, _ in pairs if p.dtype in HALF})
        if not kinds:
            self._done = bool(pairs)
            return
        cosine, moved = what_rounding_leaves(pairs, self._average_)
        if math.isnan(cosine):
            return
        self._done = True
        if self._speaks:
            logger.warning(
                f"Perturbed weights are stored in {' and '.join(kinds)}, which rounds the "
                f"perturbation: {moved:.1%} of them move at all, and the cosine between the wanted "
                f"and the actual perturbation is {cosine:.3f} (1: nothing is lost). Keep trainable "
                "weights in float32: load the model with dtype=torch.float32 and train with "
                "bf16=True (autocast), or train LoRA adapters: float32 over a 16-bit base."
            )


@torch.no_grad()
def what_rounding_leaves(
    pairs: Sequence[tuple[Tensor, Tensor]],
    average_: Callable[[Sequence[Tensor]], None] = lambda tensors: None,
) -> tuple[float, float]:
    """Return how well `p + eps` can be stored.

    Args:
        pairs: parameters p and their perturbations eps.
        average_: takes the mean of a tensor over processes, in place.

    Returns:
        The cosine between all eps and all steps (p + eps) - p as stored: 0 if the perturbation is
        lost completely, NaN if eps is zero or not finite. And the share of elements that move.
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
