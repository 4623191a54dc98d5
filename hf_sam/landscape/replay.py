# SPDX-License-Identifier: Apache-2.0
"""The same random numbers, and the same buffers and records, in every pass of an update."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

Restore = Callable[[], None]


class Store(Protocol):
    """State that a pass changes: random generators, buffers of a model, records of a trainer."""

    def remember(self) -> Restore:
        """Return a function that restores the present state; it can be called several times."""
        ...


class RandomStates:
    """The states of Python's, numpy's and torch's generators.

    Args:
        devices: the devices whose generators are included beside the CPU's.
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._devices = [device for device in devices if device.type not in ("cpu", "meta")]

    def remember(self) -> Restore:
        """Return a function that sets every generator back to its present state."""
        states: list[tuple[Callable[[Any], object], Any]] = [
            (random.setstate, random.getstate()),
            (np.random.set_state, np.random.get_state()),
            (torch.set_rng_state, torch.get_rng_state()),
        ]
        for device in self._devices:
            module = torch.get_device_module(device)
            # MPS is one device, whose functions take no device argument.
            which = () if device.type == "mps" else (device,)
            states.append((partial(_set, module, which), module.get_rng_state(*which)))

        def restore() -> None:
            for setter, value in states:
                setter(value)

        return restore


def _set(module: Any, which: tuple[torch.device, ...], value: Any) -> None:
    module.set_rng_state(value, *which)


class Replay:
    """Makes later passes of an update start from the same state as the first, and leave no trace.

    `with replay():` surrounds each pass. The state of the stores before the first pass is
    remembered. A later pass starts from that state, and when it ends, the stores get back the state
    that they had before it. So an update ends as if only its first pass had happened. An exception
    in the first pass restores the stores, too.

    Args:
        stores: the state that a pass changes; by default the generators of Python, numpy and
            torch's CPU.
        around: a context that surrounds every pass; its argument says whether the pass is the
            first.
    """

    def __init__(
        self,
        stores: Sequence[Store] | None = None,
        around: Callable[[bool], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self._stores = [RandomStates()] if stores is None else list(stores)
        self._around = around
        self._start: Restore | None = None

    def fresh(self) -> Replay:
        """Return a replay of the same stores for the passes of another update."""
        return Replay(self._stores, self._around)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Surround a pass. The start of the first one is remembered, and later ones repeat it."""
        first = self._start is None
        with self._around(first), self._first() if first else self._again():
            yield

    @contextmanager
    def _first(self) -> Iterator[None]:
        start = self._remember()
        try:
            yield
        except BaseException:  # as if the update had not begun, so that a smaller batch can retry
            start()
            raise
        self._start = start

    @contextmanager
    def _again(self) -> Iterator[None]:
        assert self._start is not None
        with self.no_trace():
            self._start()
            yield

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """Surround a block after which all stores get back the state that they had before it."""
        restore = self._remember()
        try:
            yield
        finally:
            restore()

    def _remember(self) -> Restore:
        restores = [store.remember() for store in self._stores]

        def restore() -> None:
            for one in restores:
                one()

        return restore
