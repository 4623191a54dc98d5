# SPDX-License-Identifier: Apache-2.0
"""The search for the output head of a model, the linear layer that makes the logits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

REMEDY = (
    "name the linear layer that makes the logits by sam_options={'head': REGEX}, or use another "
    "method, such as sam='sam' with sam_where"
)


def find_head(model: nn.Module, pattern: str | None) -> nn.Module:
    """Return the output head of a model, which may be wrapped by an adapter.

    Args:
        model: the model.
        pattern: a regular expression that is searched in the names of the linear layers, or None
            for `get_output_embeddings()` or else the last linear layer outside the base model.

    Raises:
        ValueError: there is no such layer, or there are several.
    """
    layers = dict(_linear_layers(model))
    kind, listed = type(model).__name__, ", ".join(list(layers)[-8:]) or "none"
    if pattern is not None:
        found = [name for name in layers if re.search(pattern, name)]
        if len(found) == 1:
            return layers[found[0]]
        among = f"several linear layers of {kind}: {', '.join(found[:8])}"
        none = f"no linear layer of {kind}; the last ones are {listed}"
        raise ValueError(
            f"sam_options: head={pattern!r} names {among if found else none}: give a regular "
            "expression that the name of one layer alone contains"
        )
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    output = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if output is not None and any(output is layer for layer in layers.values()):
        return output
    base = getattr(inner, "base_model", None)
    inside = {id(m) for m in base.modules()} if isinstance(base, nn.Module) else set()
    outside = [layer for layer in layers.values() if id(layer) not in inside]
    if not outside:
        raise ValueError(
            f"{kind} has no output head that is a linear layer outside of its base model (linear "
            f"layers: {listed}): {REMEDY}"
        )
    return outside[-1]


def _linear_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers and their names; an adapted or saved one is one layer."""
    inner: Any = module
    while hasattr(inner, "base_layer") or hasattr(inner, "original_module"):
        inner = getattr(inner, "base_layer", None) or inner.original_module
    if isinstance(inner, nn.Linear):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _linear_layers(child, f"{name}.{key}" if name else key)
