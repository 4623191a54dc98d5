# SPDX-License-Identifier: Apache-2.0
"""Containers of references: what they hold now, and putting it back into the same containers."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from types import CellType
from typing import Any

SAMPLED = 16
"""Entries of a large container that are looked at to see whether it was changed."""


class Holder:
    """A container that code may change: its entries, by identity.

    Args:
        name: what a warning calls it.
        value: the container.

    Attributes:
        own: whether it belongs to the object at the root itself, and not to one that hangs there.
    """

    __slots__ = ("name", "own", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value, self.own = name, value, False

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return views that show what is held whenever they are walked; none if that is slow."""
        return ()

    def held(self) -> tuple[Any, ...]:
        """Return what is held now."""
        return tuple(self.value)

    def values(self, held: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the values of what was held once."""
        return held

    def same(self, held: tuple[Any, ...]) -> bool:
        """Return whether exactly that is held."""
        return identical(self.held(), held)

    def put_back(self, held: tuple[Any, ...]) -> None:
        """Hold again what was held once."""
        self.value.clear()
        self.value.extend(held)

    def grown(self, held: tuple[Any, ...]) -> bool:
        """Return whether what was held is still there, in front of anything else."""
        return identical(self.held()[: len(held)], held)

    def cut(self, length: int) -> bool:
        """Let go of what came after the first entries; return whether that can be told."""
        while len(self.value) > length:
            self.value.pop()
        return True

    def sample(self, length: int) -> list[Any]:
        """Return some of the first entries, always the same ones."""
        return [self.value[i] for i in range(0, length, max(length // SAMPLED, 1))]


class Items(Holder):
    """A list."""

    __slots__ = ()

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return the list itself."""
        return (self.value,) if type(self.value) is list else ()

    def cut(self, length: int) -> bool:
        """Let go of what came after the first entries."""
        del self.value[length:]
        return True


class Queue(Holder):
    """A deque."""

    __slots__ = ()

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return the deque itself."""
        return (self.value,) if type(self.value) is deque else ()

    def sample(self, length: int) -> list[Any]:
        """Return both ends of the first entries: a deque is slow in the middle."""
        return [self.value[0], self.value[length - 1]] if length else []


class Entries(Holder):
    """A dict, also that of an object's attributes.

    Args:
        name: what a warning calls it.
        value: the dict.
        but: keys that are left alone.
    """

    __slots__ = ("but",)

    def __init__(self, name: str, value: dict[Any, Any], but: frozenset[str] = frozenset()) -> None:
        super().__init__(name, value)
        self.but = but

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return views of the keys and values, unless a class of its own may do more."""
        return (self.value.keys(), self.value.values()) if self._is_plain() else ()

    def _is_plain(self) -> bool:
        return not self.but and type(self.value) in (dict, defaultdict, OrderedDict)

    def items(self) -> list[tuple[Any, Any]]:
        """Return the keys with their values."""
        return [pair for pair in self.value.items() if pair[0] not in self.but]

    def held(self) -> tuple[Any, ...]:
        """Return every key with its value, one after the other."""
        return tuple(itertools.chain.from_iterable(self.items()))

    def values(self, held: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the values of what was held once."""
        return held[1::2]

    def put_back(self, held: tuple[Any, ...]) -> None:
        """Hold again what was held once."""
        value, before = self.value, dict(zip(held[::2], held[1::2], strict=True))
        for key in value.keys() - before.keys() - self.but:
            del value[key]
        if not self.but and list(value) != list(before):
            value.clear()  # to have the keys in their order
        value.update(before)

    def cut(self, length: int) -> bool:
        """Let go of what came after the first entries."""
        while len(self.value) > length:
            self.value.popitem()
        return True

    def sample(self, length: int) -> list[Any]:
        """Return the first entries' keys and values, some of them."""
        first = list(itertools.islice(self.value, min(SAMPLED, length)))
        return [*first, *(self.value[key] for key in first)]


class Attributes(Entries):
    """The attributes of an object, or what a module has registered: names do not change places."""

    __slots__ = ()

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return a view of the values: the names would take as long again."""
        return (self.value.values(),) if self._is_plain() else ()


class Members(Holder):
    """A set, in which the order does not matter."""

    __slots__ = ()

    def same(self, held: tuple[Any, ...]) -> bool:
        """Return whether exactly that is held."""
        return bool(self.value == set(held))

    def put_back(self, held: tuple[Any, ...]) -> None:
        """Hold again what was held once."""
        self.value.symmetric_difference_update(self.value ^ set(held))

    def grown(self, held: tuple[Any, ...]) -> bool:
        """Return whether nothing was added: what came last is unknown."""
        return self.same(held)

    def cut(self, length: int) -> bool:
        """Return whether there is nothing to let go of: what came last is unknown."""
        return len(self.value) == length

    def sample(self, length: int) -> list[Any]:
        """Return the members that come first as long as none is added."""
        return list(itertools.islice(self.value, SAMPLED))


class Slots(Entries):
    """The attributes of an object that has places for them in its class."""

    __slots__ = ()

    def live(self) -> tuple[Iterable[Any], ...]:
        """Return nothing: there is no view of slots."""
        return ()

    def items(self) -> list[tuple[Any, Any]]:
        """Return the names of what is set, with the values."""
        return [
            (name, getattr(self.value, name)) for name in slots_of(type(self.value), self.value)
        ]

    def put_back(self, held: tuple[Any, ...]) -> None:
        """Set again what was set once, and nothing else."""
        before = dict(zip(held[::2], held[1::2], strict=True))
        for name in dict(self.items()).keys() - before.keys():
            object.__delattr__(self.value, name)
        for name, value in before.items():
            object.__setattr__(self.value, name, value)


class Cell(Holder):
    """A variable that a function shares with the one around it."""

    __slots__ = ()

    def held(self) -> tuple[Any, ...]:
        """Return the content, nothing of an empty cell."""
        try:
            return (self.value.cell_contents,)
        except ValueError:
            return ()

    def put_back(self, held: tuple[Any, ...]) -> None:
        """Hold again what was held once."""
        if held:
            self.value.cell_contents = held[0]
        else:
            del self.value.cell_contents

    def grown(self, held: tuple[Any, ...]) -> bool:
        """Return whether the content is the same."""
        return self.same(held)


Held = tuple[Holder, tuple[Any, ...]]
"""A container with what it held."""


class Quiet:
    """Containers that have never moved, most of all there are: one look tells if one does.

    The look takes a list of all that they hold and compares it with the list of before, which for
    the same objects is two pointers each. Another object that is equal passes for the same: what is
    written into it later makes it unequal, and shows.

    Args:
        holders: the containers.

    Attributes:
        all: the containers with what they hold.
    """

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.all = [(holder, holder.held()) for holder in holders]
        self._live = [view for holder in holders for view in holder.live()]
        self._before = self._look()

    def _look(self) -> list[Any]:
        return list(itertools.chain.from_iterable(self._live))

    def moved(self) -> list[Held]:
        """Return the containers that do not hold the same objects, with what they held."""
        try:
            if self._look() == self._before:
                return []
        except Exception:  # tensors and arrays cannot say whether they are equal
            pass
        return [(holder, held) for holder, held in self.all if not holder.same(held)]

    def without(self, holders: Sequence[Holder]) -> Quiet:
        """Return the others, which hold the same as ever."""
        gone = set(map(id, holders))
        return Quiet([holder for holder, _ in self.all if id(holder) not in gone])


def holder_of(name: str, value: Any) -> Holder:
    """Return the holder for a container."""
    if isinstance(value, dict):
        return Entries(name, value)
    if isinstance(value, list):
        return Items(name, value)
    if isinstance(value, deque):
        return Queue(name, value)
    return Cell(name, value) if isinstance(value, CellType) else Members(name, value)


def slots_of(cls: type, value: Any) -> list[str]:
    """Return the slots that are set in an object of a class, not those that C code has."""
    names = (vars(c).get("__slots__", ()) for c in cls.__mro__ if c.__module__ != "builtins")
    listed = [[one] if isinstance(one, str) else list(one) for one in names]
    return [n for one in listed for n in one if n != "__dict__" and hasattr(value, n)]


def identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return whether two sequences hold the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
