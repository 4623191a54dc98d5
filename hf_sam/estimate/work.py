# SPDX-License-Identifier: Apache-2.0
"""Counts operations without running a model: FLOPs of a forward, and bytes that operations move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ONLY_WRITTEN = ("copy", "zero", "fill", "normal", "uniform", "bernoulli")
"""In the names of operations that write a tensor in place without reading it."""


class Moved(TorchDispatchMode):
    """Adds up the bytes that torch's operations read and write within the block.

    What is read and written in place counts twice, a view not at all.

    Attributes:
        bytes: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and add what it moves."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        arguments = func._schema.arguments
        values = [*args, *(kwargs.get(a.name) for a in arguments[len(args) :])]
        written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        if any(written):
            twice = 1 if any(word in func._schema.name for word in ONLY_WRITTEN) else 2
            moved = sum(
                size(value) * (twice if own else 1)
                for value, own in zip(values, written, strict=True)
            )
        elif func.is_view:
            moved = 0
        else:
            moved = size(values) + size(found)
        self.bytes += moved
        return found


def size(values: Any) -> int:
    """Return the bytes of all tensors in a nest of lists."""
    return sum(t.nbytes for t in tree_leaves(values) if isinstance(t, Tensor))


def flops_of(model: nn.Module, examples: int, length: int) -> float:
    """Return the FLOPs of a forward, without computing it.

    Args:
        model: on the meta device.
        examples: in the batch.
        length: tokens of an example; an image has the size that the configuration says.

    For inputs other than tokens and images, or a model that the meta device cannot run, these are 2
    for each weight of a matrix and each token.
    """
    config: Any = getattr(model, "config", None)
    edge, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    inputs = {
        "input_ids": torch.zeros(examples, length, dtype=torch.long, device="meta"),
        "pixel_values": torch.zeros(examples, channels, *_pair(edge or 224), device="meta"),
    }
    name = getattr(model, "main_input_name", "")
    if name in inputs:
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(**{name: inputs[name]})
            return float(counter.get_total_flops())
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):
            pass  # the rule for all others
    looked_up = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1 and p not in looked_up)
    return 2.0 * matrices * examples * length


def _pair(edge: Any) -> tuple[int, int]:
    return (edge, edge) if isinstance(edge, int) else (edge[0], edge[1])
