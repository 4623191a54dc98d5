# SPDX-License-Identifier: Apache-2.0
"""`Layer` and `Pair`: the linear layers of a model that have low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

LAYERS = "linear layers with low-rank adapters (LoRA)"


@dataclass(frozen=True)
class Pair:
    """The factors of one adapter, whose part of the layer's weight is `scale` B A.

    Attributes:
        a: the index of A, (r, in), among the parameters.
        b: the index of B, (out, r), among the parameters.
        scale: the factor of the product.
    """

    a: int
    b: int
    scale: float = 1.0


@dataclass(frozen=True)
class Layer:
    """A linear layer, whose weight is W, (out, in), plus the products of its pairs.

    Attributes:
        name: the layer's name in the model.
        base: the module that multiplies by W and adds the bias. W may be quantised.
        pairs: the factors of the layer's adapters.

    Example:
        >>> layer = Layer("query", nn.Linear(6, 4), [Pair(a=0, b=1), Pair(a=2, b=3)])
        >>> [pair.b for pair in chosen([layer], [True, True, True, False])[0].pairs]
        [1]
    """

    name: str
    base: nn.Module = field(repr=False)
    pairs: Sequence[Pair] = ()


def chosen(layers: Iterable[Layer], which: Sequence[bool]) -> list[Layer]:
    """Return the layers with those pairs of which both factors are chosen, if there are any."""
    kept = ([p for p in layer.pairs if which[p.a] and which[p.b]] for layer in layers)
    both = zip(layers, kept, strict=True)
    return [replace(layer, pairs=pairs) for layer, pairs in both if pairs]
