# SPDX-License-Identifier: Apache-2.0
"""Flat-LoRA: adapters that are trained under random noise on the whole weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..landscape import Landscape, Layer, changed
from ..landscape.layers import Change, Product
from ..parts.noise import RemadeProduct, normal
from ..vector import Vector
from .base import Method


@dataclass
class FlatLoRA(Method):
    """Flat-LoRA. ICML 2025, arXiv 2409.14396.

    Update::

        W'   = W + s B A                                   of each layer with an adapter
        noise_ij = sigma_t / sqrt(n) |W'_i| N(0, 1)        n inputs, i counts the rows
        u    = gradient of L at W' + noise

    sigma_t rises from 0 to sigma along half a cosine over the run. A minimum that is flat for the
    adapter alone may be sharp for the weight that it is merged into; the noise is on the latter. It
    is drawn as a function of (seed, update, layer), held for all micro-batches, equal on all ranks,
    and applied in the forward pass: W is never written to, and may be quantised. Evaluation, saving
    and merging never see noise. The logged loss is the one under noise. It works on LoRA adapters
    only.

    Cost: 1 pass and the drawing of the noise, twice for each layer and micro-batch; a quantised
    layer also multiplies its inputs a second time. No state, and no memory beyond a number per row
    and the noise of one layer at a time.

    Defaults: sigma = 0.05, the authors' for T5 and Llama 2 (0.15 for CLIP, 0.1 for SDXL).

    Deviations: the authors' code (nblt/Flat-LoRA @ 16d48ae) seeds torch's own generator anew in
    every update, adds the noise to W and subtracts it, which loses bits of W in 16 bits, counts
    micro-batches in its schedule and draws other noise on each rank. On CPU the normal deviates
    come from 65536 equally likely quantiles.

    When it does not help: short runs, for the noise grows over the run; adapters on small layers
    with few examples in a batch, where drawing the noise takes longer than using it.

    Attributes:
        sigma: final scale of the noise, relative to a row's norm; 0 is the plain Trainer.
    """

    paper = "ICML 2025, arXiv 2409.14396"
    passes = "1"
    memory = "0, and the noise of a layer"
    use = "LoRA adapters that will be merged, over a dense or a quantised base"
    needs_here = True

    sigma: float = field(
        default=0.05,
        metadata={"help": "noise relative to a row's norm", "low": 0.0, "grid": (0.05, 0.1, 0.15)},
    )

    def update(self, at: Landscape) -> Vector:
        """Return the gradient at W' + noise."""
        layers, sigma = at.layers(), self.scale(at.progress.fraction)
        if not layers or sigma == 0:
            return at.gradient()
        rows = [self.rows(at, layer) for layer in layers]
        lengths = torch.stack([row.square().sum().to(rows[0].device) for row in rows])
        at.readings["perturbation_norm"] = sigma * lengths.sum().sqrt()  # the noise's, on average
        at.skip(torch.isnan(lengths).any())
        with changed(
            (layer, under(at, layer, sigma, row)) for layer, row in zip(layers, rows, strict=True)
        ):
            return at.gradient()

    def scale(self, x: float) -> float:
        """Return sigma_t at the share x of the run, 0 to 1."""
        return self.sigma * (1 - math.cos(math.pi * x)) / 2

    @torch.no_grad()
    def rows(self, at: Landscape, layer: Layer) -> Tensor:
        """Return the norms of the rows of W', (out,), through products with W alone."""
        a = torch.cat([at.params[pair.a] for pair in layer.pairs])
        b = torch.cat([at.params[pair.b] * pair.scale for pair in layer.pairs], 1)
        # |W_i + (B A)_i|^2 without W + B A, which would take as much memory as W.
        across = (times(layer.base, a).T.to(b) * b).sum(1)
        added = ((b @ (a @ a.T)) * b).sum(1)
        return (self.squares(layer.base, a) + 2 * across + added).clamp(min=0).sqrt()

    def squares(self, base: nn.Module, like: Tensor) -> Tensor:
        """Return the squared norms of the rows of W, (out,), with the dtype of a tensor."""
        weight = dense(base)
        if weight is not None:
            return weight.square().sum(1, dtype=like.dtype)
        known = self.__dict__.setdefault("_squares", WeakKeyDictionary())
        if base not in known:  # quantised weights stay, and it takes a while to read them
            columns = torch.eye(like.shape[1], dtype=like.dtype, device=like.device).split(256)
            sums = [times(base, some).to(like).square().sum(0) for some in columns]
            known[base] = torch.stack(sums).sum(0)
        return known[base]


def under(at: Landscape, layer: Layer, sigma: float, norms: Tensor) -> Change:
    """Return the change of a layer by which W has noise.

    Args:
        at: the Landscape, whose seed and update determine the noise.
        layer: the layer.
        sigma: the scale of the noise.
        norms: the norms of the rows of the whole weight, (out,).
    """
    pair = layer.pairs[0]
    shape = torch.Size([len(norms), at.params[pair.a].shape[1]])
    key, sizes = (at.seed, at.progress.step, pair.b), norms[:, None] * (sigma / shape[1] ** 0.5)

    def change(base: Product, x: Tensor) -> Tensor:
        weight = dense(layer.base)
        # Where W is known by its products only, the noise has a product of its own.
        if weight is None or layer.base.weight.requires_grad:
            found = base(x)
            alone = RemadeProduct.apply(x, lambda: normal(x, key, shape).mul_(sizes.to(x)))
            return found + alone.to(found.dtype)

        def noisy() -> Tensor:
            return normal(weight, key, shape).mul_(sizes.to(weight)).add_(weight)

        found, bias = RemadeProduct.apply(x, noisy), layer.base.bias
        return found if bias is None else found + bias.to(found.dtype)

    # The noise is drawn by numpy or by a generator of its own, which no compiler can follow.
    return torch.compiler.disable(change)


def dense(base: nn.Module) -> Tensor | None:
    """Return W, (out, in), if calling the module does nothing but multiply by it, or None."""
    plain = isinstance(base, nn.Linear) and type(base).forward is nn.Linear.forward
    hooked = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    if not plain or hooked or type(base.weight) is not nn.Parameter:
        return None
    return base.weight.detach()


def times(base: nn.Module, x: Tensor) -> Tensor:
    """Return x W' without the bias, for inputs x, (k, in)."""
    weight = dense(base)
    if weight is not None:
        return functional.linear(x.to(weight.dtype), weight)
    kind = getattr(getattr(base, "weight", None), "dtype", x.dtype)
    x = x.to(kind) if kind.is_floating_point else x
    bias: Tensor = base(torch.zeros_like(x[:1]))
    return base(x) - bias
