# SPDX-License-Identifier: Apache-2.0
"""The same random numbers, normalisation statistics and records in every pass of an update."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .records import Records, Restore

RandomState = list[tuple[Callable[[object], None], object]]


def random_state(devices: Iterable[torch.device] = ()) -> RandomState:
    """Return the state of Python's, numpy's and torch's generators (CPU and `devices`), to be
    set again.
    """
    state: RandomState = [
        (random.setstate, random.getstate()),  # type: ignore[list-item]
        (np.random.set_state, np.random.get_state()),  # type: ignore[list-item]
        (torch.set_rng_state, torch.get_rng_state()),  # type: ignore[list-item]
    ]
    for device in devices:
        if device.type != "cpu":
            module = torch.get_device_module(device)
            # MPS is one device, whose functions take no device argument.
            which = () if device.type == "mps" else (device,)
            state.append((partial(_set, module, which), module.get_rng_state(*which)))
    return state


def _set(module: Any, which: tuple[torch.device, ...], value: Any) -> None:
    module.set_rng_state(value, *which)


def set_random_state(state: RandomState) -> None:
    """Set every generator to what `random_state` found."""
    for setter, value in state:
        setter(value)


def norm_buffers(model: nn.Module) -> list[Tensor]:
    """Return the running statistics: all buffers of modules that normalise and keep any.

    A module normalises if it holds a `running_*` or `num_batches_tracked` buffer or says "norm" in
    its class name. (torch's batch norm writes them without a version bump, so watching for changes
    would miss them.)
    """
    found: dict[int, Tensor] = {}
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        tracked = any(name.startswith("running_") or name == "num_batches_tracked" for name in own)
        if tracked or "norm" in type(module).__name__.lower():
            found.update((id(b), b) for b in own.values())
    return list(found.values())


class Replay:
    """Makes later passes of an update see what the first saw, and leave no trace of their own.

    `with replay():` surrounds each pass. Of the first it remembers the random state and the records
    before it. In a later one both start over from there, and afterwards the generators, the records
    and the norm layers' running statistics (`buffers`) are what they were before it. So an update
    ends as if only its first pass had happened.
    """

    def __init__(
        self,
        buffers: Iterable[Tensor] = (),
        devices: Iterable[torch.device] = (),
        rng: bool = True,
        records: Records | None = None,
    ) -> None:
        self._buffers = list(buffers)
        self._devices = list(devices)
        self._rng = rng
        self._records = records
        self._start: Restore | None = None

    def fresh(self) -> Replay:
        """Return a replay of the same mechanisms for other passes."""
        return Replay(self._buffers, self._devices, self._rng, self._records)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Surround a pass: the first one is remembered, each later one repeats it."""
        if self._start is None:
            self._start = self._remember()
            yield
        else:
            with self.no_trace():
                self._start()
                yield

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround what must leave generators, records and running statistics as they were."""
        put_back = self._remember()
        statistics = [b.clone() for b in self._buffers]
        try:
            yield
        finally:
            put_back()
            with torch.no_grad():
                for buffer, value in zip(self._buffers, statistics, strict=True):
                    buffer.copy_(value)

    def _remember(self) -> Restore:
        """Return a function that makes the random state and the records what they are now."""
        random = random_state(self._devices) if self._rng else []
        records = self._records.remember() if self._records is not None else None

        def restore() -> None:
            set_random_state(random)
            if records is not None:
                records()

        return restore
