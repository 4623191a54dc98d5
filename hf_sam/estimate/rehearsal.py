# SPDX-License-Identifier: Apache-2.0
"""Run a method on a stand-in model, and count what it does: passes, and memory in P.

Nothing here knows a method: whatever its code does on a small chain of matrices, it does on a large
model, in proportion to P, the size of the trainable parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes as uncounted

from ..landscape import HeadTap, Landscape, Layer, Pair
from ..methods import Method, asks
from ..methods.rehearsal import course
from .allocations import Allocations
from .work import Moved

UPDATES = 400
"""Updates whose passes are counted: schedules show in their mean."""
COUNTED = (32, 3)
"""Width and layers of the model whose passes are counted; a number per tensor is little there."""
WATCHED = 6
"""Updates whose memory is watched: up to a second renewal of what methods keep."""
PHASES = ("ascent", "perturb", "descent", "restore", "optimizer")
WIDTH, LAYERS = 512, 64
"""Of the model whose memory is watched: scratch memory, some MB at most, is small beside it."""
RANK = 8
"""Of adapters: PEFT's default."""


@dataclass(frozen=True)
class Passes:
    """What a mean update computes, in whole batches.

    Attributes:
        forwards: examples forwarded, per example of the update.
        backwards: examples gone backward through, per example of the update.
        gradients: gradients taken, each of which ranks may have to average.
        moved: what operations beside the passes read and write, in P.
    """

    forwards: float
    backwards: float
    gradients: float
    moved: float


class Chain:
    """Square matrices with a tanh between them, as a Landscape wants them."""

    def __init__(self, width: int, layers: int, adapters: bool = False) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = [(RANK, width), (width, RANK)] if adapters else [(width, width)]
        weights = (torch.randn(shape, generator=draw) / width**0.5 for shape in shapes * layers)
        self.params = [nn.Parameter(w) for w in weights]
        self.bases = [nn.Linear(width, width, bias=False) for _ in range(layers if adapters else 0)]
        for base in self.bases:
            base.requires_grad_(False)
        self.width = width
        self.forwards = self.backwards = self.gradients = 0

    @property
    def bytes(self) -> int:
        """P: what the weights take, in bytes."""
        return sum(p.numel() * p.element_size() for p in self.params)

    def products(self) -> list[Callable[[Tensor], Tensor]]:
        """Return what each layer multiplies its inputs by."""
        if not self.bases:
            return [partial(torch.matmul, other=p) for p in self.params]

        def adapted(i: int, x: Tensor) -> Tensor:
            return self.bases[i](x) + x @ self.params[2 * i].T @ self.params[2 * i + 1].T

        return [partial(adapted, i) for i in range(len(self.bases))]

    def losses(self, x: Tensor, share: Any = 1.0, head: HeadTap | None = None) -> Tensor:
        """Return the loss of each example; the last matrix is the output head."""
        self.forwards += len(x)
        *products, last = self.products()
        for product in products:
            x = torch.tanh(product(x))
        z = last(x)
        if head is not None:
            z = head(x, z, lambda z: torch.tanh(z).square().mean() * share)
        return torch.tanh(z).square().mean(1)

    @uncounted()
    def backward(
        self,
        batch: Any,
        share: Any = 1.0,
        *,
        with_losses: bool = False,
        head: HeadTap | None = None,
        **_: Any,
    ) -> Any:
        """Run forward and backward of one batch, as `Backward` describes."""
        losses = self.losses(batch, share, head)
        self.backwards, self.gradients = self.backwards + len(batch), self.gradients + 1
        loss = losses.mean() * share
        loss.backward()
        return (loss.detach(), losses.detach()) if with_losses else loss.detach()

    @uncounted()
    def per_example(self, x: Tensor) -> Tensor:
        """Return the losses without a graph."""
        with torch.no_grad():
            return self.losses(x)

    def layers(self) -> list[Layer]:
        """Return the layers with adapters."""
        pairs = [Pair(2 * i, 2 * i + 1) for i in range(len(self.bases))]
        return [Layer(f"{i}", self.bases[i], [pair]) for i, pair in enumerate(pairs)]

    @uncounted()
    def batch(self, seed: int, n: int) -> Tensor:
        """Return n examples of shape (n, width), drawn from the seed."""
        return torch.randn(n, self.width, generator=torch.Generator().manual_seed(seed))

    def update(self, method: Method, step: int, total: int, n: int, **more: Any) -> None:
        """Take one update of n examples, and forget it."""
        at = Landscape(
            self.params,
            [self.batch(step, n)],
            self.backward,
            progress=course(step, total, per_epoch=total),
            names=[f"{i}.weight" for i in range(len(self.params))],
            per_example=self.per_example,
            sample=lambda count, generator: [self.batch(-1 - i, 1) for i in range(count)],
            layers=self.layers,
            **more,
        )
        found = method(at)
        for p in self.params:
            p.grad = None
        record = more.get("on_phase")
        if record is not None:
            record("optimizer")
        del found


def passes(method: Method, batch: int) -> Passes:
    """Return what a mean update of `batch` examples computes, the renewal of masks left out."""
    chain = Chain(*COUNTED, asks(method).layers)
    chain.update(method, 0, UPDATES, batch)  # makes what is renewed once an epoch: not counted
    chain.forwards = chain.backwards = chain.gradients = 0
    with Moved() as beside:
        for step in range(UPDATES):
            chain.update(method, step, UPDATES, batch)
    whole = batch * UPDATES
    return Passes(
        chain.forwards / whole,
        chain.backwards / whole,
        chain.gradients / UPDATES,
        beside.bytes / UPDATES / chain.bytes,
    )


def memory(make: Callable[[], Method], plain: Callable[[], Method]) -> dict[str, float]:
    """Return per phase the most memory beyond the plain update's peak, in P.

    Args:
        make: builds the method.
        plain: builds the plain Trainer's.
    """
    adapters = asks(make()).layers
    base = max(_peaks(plain(), 1, adapters).values())
    found = _peaks(make(), WATCHED, adapters)
    size = Chain(WIDTH, LAYERS, adapters).bytes
    return {phase: max(found[phase] - base, 0) / size for phase in PHASES if phase in found}


def _peaks(method: Method, updates: int, adapters: bool) -> dict[str, int]:
    """Return the most bytes alive in each phase of some updates, the weights left out."""
    chain = Chain(WIDTH, LAYERS, adapters)
    with Allocations() as found:
        for step in range(updates):
            found.mark("ascent")
            chain.update(method, step, updates, 3, on_phase=found.mark)
    return found.peaks
