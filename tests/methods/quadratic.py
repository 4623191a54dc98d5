# SPDX-License-Identifier: Apache-2.0
"""f(w) = w'Aw / 2 with A = diag(1, 10) from w = (1, 0.5): what the worked examples are about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_sam import Landscape, Method, Progress

A = torch.tensor([1.0, 10.0], dtype=torch.float64)
LR = 0.1


class Quadratic:
    """The quadratic in one tensor of two numbers, or in two tensors of one.

    Attributes:
        params: w.
        seen: w at each pass so far, as one tensor of two numbers.
        gradients: given gradients per update, in place of Aw.
        decay: of an L2 term that is part of the loss.
        scale: of the loss.
    """

    def __init__(self, split: bool = False, w: tuple[float, ...] = (1.0, 0.5)) -> None:
        start = torch.tensor(w, dtype=torch.float64)
        self.params = [torch.nn.Parameter(t) for t in (start.split(1) if split else [start])]
        self.names = [f"{i}.weight" for i in range(len(self.params))]
        self.seen: list[Tensor] = []
        self.gradients: list[list[float]] | None = None
        self.decay = 0.0
        self.scale = 1.0

    @property
    def w(self) -> Tensor:
        return torch.cat([p.detach() for p in self.params])

    def backward(self, batch: Any, share: float = 1.0) -> Tensor:
        w = torch.cat(list(self.params))
        self.seen.append(w.detach().clone())
        if self.gradients is None:
            loss = 0.5 * (w * A * w).sum() + 0.5 * self.decay * (w * w).sum()
        else:
            loss = (w * torch.tensor(self.gradients[batch], dtype=w.dtype)).sum()
        (loss * share * self.scale).backward()
        return (loss * share * self.scale).detach()

    def at(self, step: int = 0, total: int = 100, **more: Any) -> Landscape:
        """The Landscape of update number `step`."""
        place = {"progress": Progress(step, total), "names": self.names, **more}
        return Landscape(self.params, [step], self.backward, **place)

    def update(self, method: Method, step: int = 0, **more: Any) -> Tensor:
        """One update as one tensor of two numbers, without moving the weights."""
        self.seen = []
        return torch.cat([u for u in method(self.at(step, **more)) if u is not None])

    def eps(self, i: int = 1) -> Tensor:
        """The perturbation of pass number i of the last update."""
        return self.seen[i] - self.w

    def descend(self, update: Tensor, lr: float = LR) -> None:
        """Move the weights against an update."""
        with torch.no_grad():
            for p, u in zip(
                self.params, update.split([p.numel() for p in self.params]), strict=True
            ):
                p -= lr * u

    def train(self, method: Method, steps: int, lr: float = LR, **more: Any) -> list[Tensor]:
        """Plain gradient descent with the method's updates; the weights after each."""
        path = []
        for step in range(steps):
            self.descend(self.update(method, step, **more), lr)
            path.append(self.w)
        return path


def close(actual: Tensor | float, expected: Any, atol: float = 1e-9) -> None:
    """Assert equality to the printed digits."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0.0
    )
