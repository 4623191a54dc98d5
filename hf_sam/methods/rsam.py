# SPDX-License-Identifier: Apache-2.0
"""Random SAM (R-SAM), which looks for the worst point from noisy weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..landscape import Landscape
from ..parts.noise import normal
from ..parts.radius import Rho, to_length_
from ..sweeps import GROUPED, by_kind
from ..vector import Vector
from .base import Perturbing


@dataclass
class RSAM(Perturbing):
    """Random SAM (R-SAM). Liu, Mai, Cheng, Chen, Hsieh, You, NeurIPS 2022 (no arXiv id).

    Update::

        noise  = s |w_f| N(0, 1)  per filter f (a row, or a whole 1-D tensor)
        smooth = gradient of L at w + noise
        v      = noise + lam smooth
        u      = gradient of L at w + rho v / |v|

    The noise smooths the loss, so that a single gradient is a steadier guide to the worst point
    nearby. Its scale s rises from 0.2 sigma to sigma along half a cosine over the run. No pass is
    at w: the logged loss, the norm layers' running statistics and `sam/sharpness` (the last pass
    compared with the first) come from w + noise.

    Cost: 2 passes, 1 P extra, no state. The noise is not stored but drawn again, as a function of
    (seed, update, parameter). On a CPU each deviate takes 3 ns, so that both draws for 22.7 M
    weights take 140 ms; keeping the noise would save half of that and take 1 P more.

    Defaults: sigma = 0.0025 and lam = 2, the authors' for ViT; rho = 0.05, SAM's (the authors' 2.5
    falling to 1.5 is for ViT-B/16 trained from scratch).

    Deviations: as in the authors' code (RSAM-Optimizer/R-SAM @ 1ceba0e) the gradient in v is not
    normalised, so the result depends on the loss's scale. That code draws one noise for all tensors
    of a shape and another on each device; here every tensor has its own, the same on all ranks. On
    CPU the normal deviates come from 65536 equally likely quantiles. A parameter without a gradient
    takes no part in v.

    When it does not help: adapters that start at zero (LoRA's B) get no noise at first.

    Attributes:
        rho: radius, weight-space L2 norm, or a schedule for it.
        sigma: final scale of the noise, relative to a filter's norm; 0 is SAM.
        lam: weight of the gradient in v.
    """

    paper = "Liu et al., NeurIPS 2022"
    passes = "2"
    memory = "1"
    use = "vision transformers from scratch; when one batch's gradient is a poor guide"
    needs_here = False

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    sigma: float = field(
        default=0.0025, metadata={"help": "noise relative to a filter's norm", "low": 0.0}
    )
    lam: float = field(default=2.0, metadata={"help": "weight of the gradient", "low": 0.0})

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at w + rho v / |v|."""
        sizes = self.sizes(at)
        with at.perturbed(self.noise(at, sizes)):
            smooth = at.ascent(self)
        v = smooth.mul_(self.lam)
        # Drawing the same noise again costs less than keeping a copy through the pass.
        v.add_(self.noise(at, sizes).on(v.selection))
        del smooth
        with at.perturbed(to_length_(v, self.rho, v.norm(), at)):
            return at.gradient()

    def scale(self, x: float) -> float:
        """Return the noise's scale s at the share x of the run, 0 to 1."""
        return self.sigma * (0.2 + 0.8 * (1 - math.cos(math.pi * x)) / 2)

    def sizes(self, at: Landscape) -> Vector:
        """Return the noise's size for each filter, s |w_f|, in a shape that broadcasts to w.

        Only the parameters that may be perturbed have an entry.
        """
        w = at.weights().on(at.where)
        # A vector or scalar is one filter, whose norm is over the rows of all processes.
        whole = w.on([t is not None and t.ndim < 2 for t in w]).norms()
        sizes = (
            None if t is None else _filters(t) if n is None else n.to(t)
            for t, n in zip(w, whole, strict=True)
        )
        return Vector(sizes, w.placement).mul_(self.scale(at.progress.fraction))

    def noise(self, at: Landscape, sizes: Vector) -> Vector:
        """Return noise of the given sizes, which is the same at every call within an update."""
        drawn = Vector(self._drawn(at, at.weights().on(sizes.selection)), sizes.placement)
        for places in by_kind(drawn.tensors, sizes.tensors):
            entries, factors = ([vector[i] for i in places] for vector in (drawn, sizes))
            torch._foreach_mul_(entries, factors)  # type: ignore[arg-type]
        return drawn

    def _drawn(self, at: Landscape, w: Vector) -> list[Tensor | None]:
        """Return N(0, 1) deviates as a function of (seed, update, parameter)."""
        drawn: list[Tensor | None] = [None] * len(w)
        for places in _at_once(at, w):
            shapes = [at.params[i].shape for i in places]
            key, counts = (at.seed, at.progress.step, places[0]), [s.numel() for s in shapes]
            flat = normal(w.tensors[places[0]], key, torch.Size([sum(counts)]))  # type: ignore[arg-type]
            # Every process draws for the whole parameter and keeps the rows that it holds.
            for i, shape, part in zip(places, shapes, flat.split(counts), strict=True):
                drawn[i] = at.rows(i, part.view(shape))
        return drawn


def _at_once(at: Landscape, w: Vector) -> Iterator[list[int]]:
    """Yield the parameters whose noise is drawn together: many on an accelerator, one on a CPU.

    The runs do not depend on the rows that a process holds, so that the noise does not, either.
    """
    run: list[int] = []
    for i in w.present:
        entry, first = w.tensors[i], w.tensors[run[0] if run else i]
        assert entry is not None and first is not None
        alike = (entry.device, entry.dtype) == (first.device, first.dtype)
        size = entry.element_size() * sum(at.params[k].numel() for k in (*run, i))
        if run and (entry.device.type == "cpu" or not alike or size > GROUPED.bytes):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _filters(w: Tensor) -> Tensor:
    """Return the norm of each row of w, in a shape that broadcasts to w."""
    return torch.linalg.vector_norm(w, dim=tuple(range(1, w.ndim)), keepdim=True)
