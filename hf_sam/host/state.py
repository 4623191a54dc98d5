# SPDX-License-Identifier: Apache-2.0
"""What a pass may move: a search through whatever a Trainer holds."""

from __future__ import annotations

import enum
import functools
import itertools
import random
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .holders import Attributes, Cell, Holder, Slots, holder_of, slots_of

MANY = 10_000
"""Entries of a container from which on nobody looks inside of them, even at first."""
HOOKS = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""Attributes of every module that hold what users registered there, which no pass moves."""

MACHINERY = (sys.stdlib_module_names - {"argparse", "collections", "types"}) | {
    *("accelerate", "comet_ml", "clearml", "datasets", "deepspeed", "evaluate", "hf_sam"),
    *("mlflow", "neptune", "numpy", "optuna", "ray", "tensorboardX", "tokenizers", "torch"),
    *("pandas", "PIL", "pyarrow", "torchvision", "tqdm", "transformers", "trackio", "wandb"),
}
"""Packages whose objects look after their own state (but for modules of a network)."""

WRAPPERS = ("torch.", "accelerate.", "deepspeed.")
LAYERS = ("torch.nn.modules.", "torch.nn.utils.", "torch.ao.")

NO_STATE = (
    *(DataLoader, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    random.SystemRandom,
)
RANDOM = (
    *(torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
    random.Random,
)
ITERATORS: tuple[Any, ...] = (
    *(types.GeneratorType, map, zip, filter, enumerate, reversed, type(iter([])), type(iter(()))),
    *(type(iter({})), type(iter({}.values())), type(iter({}.items())), type(iter(set()))),
    *(type(iter(range(0))), itertools.chain, itertools.cycle, itertools.count, itertools.islice),
)
KINDS: dict[str, tuple[Any, ...]] = {
    "leaf": (*NO_STATE, type, enum.Enum, str, bytes, int, float),
    "tensor": (Tensor,),
    "array": (np.ndarray,),
    "module": (nn.Module,),
    "random": RANDOM,
    "stream": ITERATORS,
    "dict": (dict,),
    "container": (list, deque, set),
    "tuple": (tuple, frozenset),
    "function": (types.FunctionType,),
    "method": (types.MethodType, functools.partial),
    "cell": (types.CellType,),
}


def kind_of(value: Any) -> str:
    """Return how a value is looked at; a leaf is not looked into."""
    cls: Any = type(value)
    return _kind(cls)


@functools.cache
def _kind(cls: Any) -> str:
    for kind, classes in KINDS.items():
        if issubclass(cls, classes):
            return kind
    name = cls.__module__
    if name.startswith(("torch.utils.data", "itertools")) and hasattr(cls, "__next__"):
        return "stream"
    return "leaf" if name.split(".")[0] in MACHINERY else "object"


@dataclass
class Found:
    """What a pass may move.

    Attributes:
        holders: containers, and the attributes of objects.
        contents: tensors and arrays, with their names.
        grouped: those inside long containers, by the container's name.
        generators: random generators.
        streams: iterators, with their names.
        watched: large containers that are not looked into.
        trained: tensors with a gradient, which return by themselves.
    """

    holders: list[Holder] = field(default_factory=list)
    contents: list[tuple[str, Any]] = field(default_factory=list)
    grouped: dict[str, list[Any]] = field(default_factory=dict)
    generators: list[Any] = field(default_factory=list)
    streams: list[tuple[str, Any]] = field(default_factory=list)
    watched: list[Holder] = field(default_factory=list)
    trained: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """How to look through what a Trainer holds.

    Trained weights are left out: they return by themselves. So are the objects of libraries, which
    look after their state: optimizers, loggers, data loaders.

    Attributes:
        norm_statistics: whether the running statistics of normalisation layers belong to it.
        generators: whether random generators do.
        weights: whether weights without gradient do; a sharding engine exchanges them itself.
    """

    norm_statistics: bool = True
    generators: bool = True
    weights: bool = True

    def __call__(
        self,
        roots: Mapping[str, Any],
        but: frozenset[str] = frozenset(),
        asleep: Callable[[Holder], bool] = lambda _: False,
        grouped: Callable[[Holder], bool] = lambda _: False,
    ) -> Found:
        """Return all that is reached from an object's attributes.

        Args:
            roots: the attributes.
            but: names of attributes to leave alone.
            asleep: whether a container is only watched, and not looked into.
            grouped: whether the contents of a container belong together.
        """
        walk = _Walk(self, asleep, grouped)
        attributes = Attributes("", roots, but)  # type: ignore[arg-type]
        attributes.own = True
        walk.found.holders.append(attributes)
        walk.go(attributes.items())
        return walk.found


class _Walk:
    """One walk over everything, each object once."""

    def __init__(
        self,
        search: Search,
        asleep: Callable[[Holder], bool],
        grouped: Callable[[Holder], bool],
    ) -> None:
        self._search, self._asleep, self._grouped = search, asleep, grouped
        self._seen: dict[int, Any] = {}
        self._next: deque[tuple[str, Any]] = deque()
        self._groups: list[Holder] = []
        self._group: list[Any] | None = None  # of the container that is looked into
        self.found = Found()

    def go(self, values: Iterable[tuple[str, Any]]) -> None:
        """Look at values, and at all that they hold; last at long containers, one by one."""
        self._next.extend(values)
        self._empty()
        while self._groups:
            holder = self._groups.pop()
            self._group = self.found.grouped.setdefault(holder.name, [])
            self._inside(holder)
            self._empty()

    def _empty(self) -> None:
        while self._next:
            name, value = self._next.popleft()
            kind = kind_of(value)
            if kind != "leaf" and id(value) not in self._seen:
                self._seen[id(value)] = value
                getattr(self, f"_{kind}")(name, value)

    def _tensor(self, name: str, value: Tensor) -> None:
        if value.requires_grad:
            self.found.trained.append(value)
        elif self._search.weights or not isinstance(value, nn.Parameter):
            self._content(name, value)

    def _content(self, name: str, value: Any) -> None:
        if self._group is None:
            self.found.contents.append((name, value))
        else:
            self._group.append(value)

    def _array(self, name: str, value: Any) -> None:
        if value.flags.writeable:
            self._content(name, value)
        if value.dtype == object and value.size < 1000:
            self._next.extend((f"{name}[{i}]", one) for i, one in enumerate(value.flat))

    def _random(self, name: str, value: Any) -> None:
        if self._search.generators:
            self.found.generators.append(value)

    def _stream(self, name: str, value: Any) -> None:
        self.found.streams.append((name, value))

    def _dict(self, name: str, value: Any) -> None:
        holder = holder_of(name, value)
        holder.own = "." not in re.sub(r"\['[^']*'\]", "", name)
        if self._holds(holder):
            if self._group is None and self._grouped(holder):
                self._groups += [holder] if len(value) <= MANY else []
            else:
                self._inside(holder)

    _container = _dict

    def _inside(self, holder: Holder) -> None:
        name, value = holder.name, holder.value
        if isinstance(value, dict):
            self._next.extend((f"{name}[{_short(key)}]", one) for key, one in value.items())
        else:
            self._tuple(name, value)

    def _holds(self, holder: Holder) -> bool:
        """Take a container; return whether to look into it."""
        if self._asleep(holder):
            self.found.watched.append(holder)
            return False
        self.found.holders.append(holder)
        if hasattr(holder.value, "__dict__"):
            self._object(holder.name, holder.value)
        return True

    def _tuple(self, name: str, value: Iterable[Any]) -> None:
        self._next.extend((f"{name}[{i}]", one) for i, one in enumerate(value))

    def _cell(self, name: str, value: types.CellType) -> None:
        cell = Cell(name, value)
        self.found.holders.append(cell)
        self._next.extend((name, one) for one in cell.held())

    def _function(self, name: str, value: Any) -> None:
        if value.__module__ and value.__module__.split(".")[0] in MACHINERY:
            return
        names = value.__code__.co_freevars
        self._next.extend(zip(names, value.__closure__ or (), strict=True))
        self._next.append((f"{name}.__defaults__", value.__defaults__))
        self._object(name, value)

    def _method(self, name: str, value: Any) -> None:
        if isinstance(value, functools.partial):
            self._next.extend([(name, value.func), (name, value.args), (name, value.keywords)])
        else:
            self._next.append((name, value.__self__))

    def _object(self, name: str, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self.found.holders.append(Attributes(name, attributes))
            self._next.extend((f"{name}.{key}", one) for key, one in attributes.items())
        if slots_of(type(value), value):
            slots = Slots(name, value)
            self.found.holders.append(slots)
            self._next.extend((f"{name}.{key}", one) for key, one in slots.items())

    def _module(self, name: str, value: nn.Module) -> None:
        where = type(value).__module__
        attributes = vars(value)
        leaves_statistics = not self._search.norm_statistics and normalises(value)
        if where.startswith(WRAPPERS) and not where.startswith(LAYERS):
            attributes = {"_modules": attributes.get("_modules")}  # they keep their own books
        else:
            self.found.holders.append(Attributes(name, attributes))
        for key, one in attributes.items():
            if key in HOOKS or (key == "_buffers" and leaves_statistics):
                continue
            if key in ("_parameters", "_buffers", "_modules"):
                self._registered(name, key, one)
            else:
                self._next.append((f"{name}.{key}", one))

    def _registered(self, name: str, key: str, entries: Any) -> None:
        """Look at the weights, buffers or modules that a module has registered."""
        if not isinstance(entries, dict) or (key == "_parameters" and not self._search.weights):
            return
        self.found.holders.append(Attributes(name, entries))
        self._next.extend((f"{name}.{inner}", one) for inner, one in entries.items())


def normalises(module: nn.Module) -> bool:
    """Return whether a module keeps running statistics, or says "norm" in its class name."""
    names = [name for name, _ in module.named_buffers(recurse=False)]
    tracked = any(name.startswith("running_") or name == "num_batches_tracked" for name in names)
    return tracked or "norm" in type(module).__name__.lower()


def _short(key: Any) -> str:
    return repr(key) if isinstance(key, (str, int)) else type(key).__name__
