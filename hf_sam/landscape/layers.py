# SPDX-License-Identifier: Apache-2.0
"""`Layer` and `Pair`: the linear layers of a model that have low-rank adapters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

LAYERS = "linear layers with low-rank adapters (LoRA)"

Product = Callable[[Tensor], Tensor]
Change = Callable[[Product, Tensor], Tensor]
"""`change(base, x)` returns what a layer's base gives for inputs x, in the place of `base(x)`."""


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


@contextmanager
def changed(changes: Iterable[tuple[Layer, Change]]) -> Iterator[None]:
    """Have layers compute something else inside the block, in every pass.

    Nothing of a layer is written to, so W may be quantised, and what is evaluated, saved or merged
    outside of the block is as if the block did not exist.

    Args:
        changes: the layers, and what their bases return inside the block.

    Example:
        >>> import torch
        >>> layer = Layer("query", nn.Linear(2, 2))
        >>> x = torch.ones(1, 2)
        >>> with changed([(layer, lambda base, x: base(x) + 1)]):
        ...     there = layer.base(x)
        >>> bool(there.allclose(layer.base(x) + 1))
        True
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for layer, change in changes:
            base, kind = layer.base, layer.base.__class__
            before.append((base, kind))
            _CHANGES[base] = change
            # A hook would do the same, but torch.compile does not notice that one comes or goes.
            base.__class__ = _changing(kind)  # type: ignore[arg-type]
        yield
    finally:
        for base, kind in before:
            base.__class__ = kind
            del _CHANGES[base]


def is_changed(layer: Layer) -> bool:
    """Return whether a layer computes something else now."""
    return layer.base in _CHANGES


@functools.cache
def _changing(kind: Any) -> Any:
    """Return the class of modules that are like those of a class, and whose calls are changed."""

    class Changing(kind):
        # The call and not `forward`, which libraries may have replaced in the module itself.
        def __call__(self, x: Tensor) -> Tensor:
            return _CHANGES[self](super().__call__, x)

    Changing.__name__, Changing.__qualname__ = kind.__name__, kind.__qualname__
    return Changing


_CHANGES: WeakKeyDictionary[nn.Module, Change] = WeakKeyDictionary()
"""What modules that are changed now return."""
