# SPDX-License-Identifier: Apache-2.0
"""Random generators and iterators that a Trainer or a model owns."""

from __future__ import annotations

import gc
import itertools
import operator
import random
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ..landscape import Restore
from .state import kind_of


def remember_generators(generators: Iterable[Any]) -> Restore:
    """Return a function that sets random generators to their states of now."""
    states = [_state(generator) for generator in generators]

    def restore() -> None:
        for put_back, state in states:
            put_back(state)

    return restore


def _state(generator: Any) -> tuple[Callable[[Any], Any], Any]:
    if isinstance(generator, torch.Generator):
        return generator.set_state, generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.set_state, generator.get_state()
    if isinstance(generator, random.Random):
        return generator.setstate, generator.getstate()
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator

    def put_back(state: Any) -> None:
        bits.state = state

    return put_back, bits.state


def position(stream: Any) -> list[Any]:
    """Return what tells, as far as can be seen from outside, how far an iterator has come."""
    if isinstance(stream, types.GeneratorType):
        frame = stream.gi_frame
        if frame is None:
            return ["done"]
        inner = [*dict(frame.f_locals).values(), stream.gi_yieldfrom]
        return [frame.f_lasti, *map(_mark, inner)]
    if isinstance(stream, itertools.count):
        return [repr(stream)]
    if isinstance(stream, itertools.cycle):
        return _position_of_cycle(stream)
    attributes = getattr(stream, "__dict__", {})
    held = [_mark(one) for one in gc.get_referents(stream)] if not attributes else []
    return [operator.length_hint(stream, -1), *held, *attributes.values()]


def same_position(one: Any, other: Any) -> bool:
    """Return whether two positions of one iterator are the same."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_position, one, other))
    return one is other or (isinstance(one, (int, str)) and one == other)


def _mark(value: Any) -> Any:
    """Return what shows that a value which an iterator holds was exchanged, or has moved."""
    if isinstance(value, (torch.Generator, np.random.Generator, random.Random)):
        return repr(_state(value)[1])
    if isinstance(value, tuple):
        return [_mark(one) for one in value]
    if isinstance(value, (list, deque, dict, set)):
        return [id(value), len(value)]
    return position(value) if kind_of(value) == "stream" else value


def _position_of_cycle(stream: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return [_mark(one) for one in stream.__reduce__()[1]]
        except TypeError:  # Python 3.14 does not say
            return []
