# SPDX-License-Identifier: Apache-2.0
"""Bi-LoRA: a second adapter that ascends while the first one descends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..landscape import Landscape, Layer, changed
from ..landscape.layers import Change, Product
from ..parts.radius import Rho, RhoSchedule
from ..sweeps import by_kind, number
from ..vector import Vector
from .base import Method

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as Trainer's optimizers have them by default."""


@dataclass
class BiLoRA(Method):
    """Bi-LoRA. ICLR 2026, arXiv 2508.19564.

    Update::

        u    = gradient of L at W + s B A + s B2 A2  (of the adapter B A)
        B2, A2 take a step of the optimizer's size uphill, along the same gradient
        size = the root of the sum of |s B2 A2|^2 over all layers
        B2, A2 *= sqrt(rho / size)  if size > rho

    The second adapter of each layer is the perturbation: it looks for worse points while the first
    one is trained, on the same pass, so that SAM costs no second one. It is not a part of the
    model: evaluation, saving, merging and gradient clipping never see it, and a checkpoint keeps it
    with the method's state. The logged loss is the one at the perturbed point. It works on LoRA
    adapters only.

    Cost: 1 pass; 4 P extra if the second adapter has the first one's rank, of which 3 P are kept.

    Defaults: rho = 0.05, rank 8 and the run's learning rate, the authors' (rho = 0.1 for Qwen and
    SuperGLUE; 0.2 hurt).

    Deviations: it was written from the paper, whose code was not to be had. The start of the second
    adapter was not found; here it begins as PEFT's adapters do, with B2 = 0, so the first update is
    a plain one. The length that rho bounds includes the adapter's scale s, and the ascent has no
    weight decay and no dropout of its own. Where a layer has several adapters, s is the first
    one's.

    When it does not help: full fine-tuning, which it does not do; runs of a few updates, for the
    second adapter starts at zero.

    Attributes:
        rho: bound of the perturbation, L2 norm over the layers' weights, or a schedule for it; 0 is
            the plain Trainer.
        rank: rank of the second adapter.
        rule: how the second adapter takes its step: by Adam, or by gradient ascent.
    """

    paper = "ICLR 2026, arXiv 2508.19564"
    passes = "1"
    memory = "4"
    use = "LoRA adapters of language models, at nearly the price of plain training"
    stateful: ClassVar[bool] = True
    pretrained_rho = 0.05
    needs_here = True

    rho: Rho = field(
        default=0.05,
        metadata={"help": "bound of the perturbation", "low": 0.0, "grid": (0.01, 0.02, 0.05, 0.1)},
    )
    rank: int = field(
        default=8, metadata={"help": "of the second adapter", "low": 1, "whole": True}
    )
    rule: str = field(
        default="adam", metadata={"help": "of the second adapter", "choices": ("adam", "sgd")}
    )

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at the perturbed point, and move the second adapters."""
        layers = at.layers()
        if not layers:
            return at.gradient()
        second = self.second(at, layers)
        size = self.state.tensor("size")
        at.readings["perturbation_norm"] = size = length(layers, second) if size is None else size
        # New leaves in the same storage, so that what is kept never belongs to a graph.
        leaves = Vector(None if t is None else t.detach().requires_grad_() for t in second)
        with changed((layer, adding(layer, leaves)) for layer in layers):
            here = at.gradient()
        ascent = at.take_own(leaves)
        ok = torch.isfinite(here.norm() + ascent.norm())
        at.skip(~ok)
        self.climb(second.on(ascent.selection), ascent.where_(ok), ok.to(size), at.rate())
        del ascent  # its memory is free before lengths are computed
        self.state["size"] = self.clip(at, layers, second)
        return here

    def second(self, at: Landscape, layers: Sequence[Layer]) -> Vector:
        """Return the second adapters, with A2 and B2 in the places of A and B.

        They begin as a new adapter does. When there are new ones, Adam's averages start anew.
        """
        kept = self.state.vector("second")
        tensors: list[Tensor | None] = list(kept or [None] * len(at.params))
        pairs = [layer.pairs[0] for layer in layers]
        new = [pair for pair in pairs if tensors[pair.a] is None or tensors[pair.b] is None]
        for pair in new:
            a, b = at.params[pair.a], at.params[pair.b]
            drawn, bound = torch.empty(self.rank, a.shape[1]), 1 / math.sqrt(a.shape[1])
            drawn.uniform_(-bound, bound, generator=at.generator)
            # Steps of a learning rate would be lost in 16 bits.
            wide = torch.promote_types(b.dtype, torch.float32)
            tensors[pair.a] = drawn.to(a.device, wide)
            tensors[pair.b] = torch.zeros(b.shape[0], self.rank, dtype=wide, device=b.device)
        second = Vector(tensors)
        if new:
            self.state.clear()
            self.state["second"] = second
        members = {i for pair in pairs for i in (pair.a, pair.b)}
        return second.on([i in members for i in range(len(second))])

    def climb(self, second: Vector, ascent: Vector, ok: Tensor, rate: float) -> None:
        """Move the second adapters uphill by one step.

        Args:
            second: the adapters that have a gradient.
            ascent: their gradients.
            ok: 1, or 0 to leave everything as it is, `()`.
            rate: the learning rate.
        """
        if self.rule == "sgd":
            second.add_(ascent, rate * ok)
            return
        mean, square, count = self.averages(second, ok)
        part = [ok * (1 - beta) for beta in BETAS]
        mean.mul_(1 - part[0]).add_(ascent, part[0])
        # From here on the storage of the gradients holds what is made of them.
        for places in by_kind(ascent.tensors):
            mine: Any = [ascent.tensors[i] for i in places]
            torch._foreach_mul_(mine, mine)
        square.mul_(1 - part[1]).add_(ascent, part[1])
        # Both averages begin at zero, which these two factors make up for.
        short = [1 - beta ** count.clamp(min=1) for beta in BETAS]
        for places in by_kind(ascent.tensors):
            three = (ascent, mean, square)
            mine, means, squares = (cast(list[Tensor], [v[i] for i in places]) for v in three)
            torch._foreach_copy_(mine, squares)
            torch._foreach_sqrt_(mine)
            torch._foreach_div_(mine, number(short[1].sqrt(), mine[0]))
            torch._foreach_add_(mine, EPSILON)
            torch._foreach_reciprocal_(mine)
            torch._foreach_mul_(mine, means)
        second.add_(ascent.changed(), rate * ok / short[0])

    def averages(self, second: Vector, ok: Tensor) -> tuple[Vector, Vector, Tensor]:
        """Return Adam's averages of the gradients of some of the adapters, and their number."""
        whole = self.state.vector("second")
        assert whole is not None
        for name in ("mean", "square"):
            if name not in self.state:
                zeros = (None if t is None else torch.zeros_like(t) for t in whole)
                self.state[name] = Vector(zeros)
        before = self.state.tensor("count")
        count = self.state["count"] = ok if before is None else before + ok
        mean, square = (self.state.vector(name) for name in ("mean", "square"))
        assert mean is not None and square is not None
        return mean.on(second.selection), square.on(second.selection), count

    def clip(self, at: Landscape, layers: Sequence[Layer], second: Vector) -> Tensor:
        """Shorten all second adapters by one factor, so that the perturbation is rho at most.

        Returns:
            The `()` length of the perturbation.
        """
        size = length(layers, second)
        rho = self.rho(at, size) if isinstance(self.rho, RhoSchedule) else self.rho
        factor = torch.where(size > rho, rho / size, torch.ones_like(size))
        _ = second.mul_(factor.sqrt()).tensors  # reading them applies the factor
        return size * factor


def adding(layer: Layer, second: Vector) -> Change:
    """Return the change of a layer by which its second adapter is added to its output."""
    pair = layer.pairs[0]
    a, b, scale = second[pair.a], second[pair.b], pair.scale
    assert a is not None and b is not None

    def change(base: Product, x: Tensor) -> Tensor:
        found = base(x)
        inner = functional.linear(x.to(a.dtype), a)
        return found + (functional.linear(inner, b) * scale).to(found.dtype)

    return change


def length(layers: Sequence[Layer], second: Vector) -> Tensor:
    """Return the root of the sum of |s B2 A2|^2 over the layers, `()`."""
    squares, scales = [], []
    for layer in layers:
        a, b = second[layer.pairs[0].a], second[layer.pairs[0].b]
        assert a is not None and b is not None
        # |B A|^2 is the inner product of B'B and A A', which have rank x rank entries only.
        squares.append(torch.dot((b.T @ b).flatten(), (a @ a.T).flatten()))
        scales.append(layer.pairs[0].scale ** 2)
    torch._foreach_mul_(squares, scales)
    return torch.stack([one.to(squares[0].device) for one in squares]).sum().clamp(min=0).sqrt()
