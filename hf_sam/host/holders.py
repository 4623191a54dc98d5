# SPDX-License-Identifier: Apache-2.0
"""Containers of references: what they hold now, and putting it back into the same containers."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator
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

    def views(self) -> tuple[Iterable[Any], ...]:
        """Return live views: as often as they are walked, they show what is held then."""
        return (self.value,)

    def copy(self) -> Any:
        """Return what is held now."""
        return list(self.value)

    def values(self, copy: Any) -> Collection[Any]:
        """Return the values in a copy."""
        return copy

    def same(self, copy: Any) -> bool:
        """Return whether exactly what a copy has is held."""
        held = self.copy()
        return len(held) == len(copy) and all(map(_is, held, copy))

    def put_back(self, copy: Any) -> None:
        """Hold again what a copy has."""
        self.value.clear()
        self.value.extend(copy)

    def grown(self, copy: Any) -> bool:
        """Return whether what a copy has is still there, in front of anything else."""
        return len(self.value) >= len(copy) and all(map(_is, self.value, copy))

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

    def cut(self, length: int) -> bool:
        """Let go of what came after the first entries."""
        del self.value[length:]
        return True


class Queue(Holder):
    """A deque."""

    __slots__ = ()

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

    def views(self) -> tuple[Iterable[Any], ...]:
        """Return live views of the keys and values."""
        return (Chosen(self),) if self.but else (self.value.keys(), self.value.values())

    def copy(self) -> dict[Any, Any]:
        """Return what is held now."""
        held = dict(self.value.items())
        for key in self.but & held.keys():
            del held[key]
        return held

    def values(self, copy: dict[Any, Any]) -> Collection[Any]:
        """Return the values in a copy."""
        return copy.values()

    def same(self, copy: dict[Any, Any]) -> bool:
        """Return whether exactly what a copy has is held, in its order."""
        held = self.copy()
        return list(held) == list(copy) and all(map(_is, held.values(), copy.values()))

    def put_back(self, copy: dict[Any, Any]) -> None:
        """Hold again what a copy has."""
        value = self.value
        for key in value.keys() - copy.keys() - self.but:
            del value[key]
        if not self.but and list(value) != list(copy):
            value.clear()  # to have the keys in their order
        value.update(copy)

    def grown(self, copy: dict[Any, Any]) -> bool:
        """Return whether what a copy has is still there, in front of anything else."""
        held = self.copy()
        return len(held) >= len(copy) and all(
            a is b and held[a] is copy[b] for a, b in zip(held, copy, strict=False)
        )

    def cut(self, length: int) -> bool:
        """Let go of what came after the first entries."""
        while len(self.value) > length:
            self.value.popitem()
        return True

    def sample(self, length: int) -> list[Any]:
        """Return the first entries' keys and values, some of them."""
        first = list(itertools.islice(self.value, min(SAMPLED, length)))
        return [*first, *(self.value[key] for key in first)]


class Chosen:
    """The keys and values of a dict but for some keys, as often as they are asked for."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[Any]:
        entries = self._entries
        for key, value in entries.value.items():
            if key not in entries.but:
                yield key
                yield value


class Members(Holder):
    """A set, in which the order does not matter."""

    __slots__ = ()

    def copy(self) -> set[Any]:
        """Return what is held now."""
        return set(self.value)

    def same(self, copy: set[Any]) -> bool:
        """Return whether exactly what a copy has is held."""
        return bool(self.value == copy)

    def put_back(self, copy: set[Any]) -> None:
        """Hold again what a copy has."""
        self.value.symmetric_difference_update(self.value ^ copy)

    def grown(self, copy: set[Any]) -> bool:
        """Return whether nothing was added: what came last is unknown."""
        return self.same(copy)

    def cut(self, length: int) -> bool:
        """Return whether there is nothing to let go of: what came last is unknown."""
        return len(self.value) == length

    def sample(self, length: int) -> list[Any]:
        """Return the members that come first as long as none is added."""
        return list(itertools.islice(self.value, SAMPLED))


class Slots(Entries):
    """The attributes of an object that has places for them in its class."""

    __slots__ = ()

    def views(self) -> tuple[Iterable[Any], ...]:
        """Return a live view of the names and values."""
        return (self,)

    def __iter__(self) -> Iterator[Any]:
        for pair in self.copy().items():
            yield from pair

    def copy(self) -> dict[Any, Any]:
        """Return the values that are set."""
        return {name: getattr(self.value, name) for name in slots_of(type(self.value), self.value)}

    def put_back(self, copy: dict[Any, Any]) -> None:
        """Set again what a copy has, and nothing else."""
        for name in self.copy().keys() - copy.keys():
            object.__delattr__(self.value, name)
        for name, value in copy.items():
            object.__setattr__(self.value, name, value)


class Cell(Holder):
    """A variable that a function shares with the one around it."""

    __slots__ = ()

    def views(self) -> tuple[Iterable[Any], ...]:
        """Return a live view of the content."""
        return (self,)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.copy())

    def copy(self) -> list[Any]:
        """Return the content, nothing of an empty cell."""
        try:
            return [self.value.cell_contents]
        except ValueError:
            return []

    def put_back(self, copy: list[Any]) -> None:
        """Hold again what a copy has."""
        if copy:
            self.value.cell_contents = copy[0]
        else:
            del self.value.cell_contents

    def grown(self, copy: list[Any]) -> bool:
        """Return whether the content is the same."""
        return self.same(copy)


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


def _is(one: Any, other: Any) -> bool:
    return one is other
