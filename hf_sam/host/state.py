# SPDX-License-Identifier: Apache-2.0
"""State of a model that its forward moves: the statistics of normalisation layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..landscape import Restore


def norm_buffers(models: Iterable[nn.Module]) -> list[Tensor]:
    """Return the running statistics: all buffers of modules that normalise and keep any.

    A module normalises if it holds a `running_*` or `num_batches_tracked` buffer or says "norm" in
    its class name. (torch's batch norm writes them without a version bump, so watching for changes
    would miss them.)
    """
    found: dict[int, Tensor] = {}
    for module in (inner for model in models for inner in model.modules()):
        own = dict(module.named_buffers(recurse=False))
        tracked = any(name.startswith("running_") or name == "num_batches_tracked" for name in own)
        if tracked or "norm" in type(module).__name__.lower():
            found.update((id(b), b) for b in own.values())
    return list(found.values())


class NormStatistics:
    """The running statistics of normalisation layers.

    Args:
        models: whose.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._buffers = norm_buffers(models)

    def remember(self) -> Restore:
        """Return a function that writes the values of now into the same buffers."""
        values = [b.clone() for b in self._buffers]

        def restore() -> None:
            with torch.no_grad():
                for buffer, value in zip(self._buffers, values, strict=True):
                    buffer.copy_(value)

        return restore
