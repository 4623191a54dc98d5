# SPDX-License-Identifier: Apache-2.0
"""What a pass moves beside gradients (buffers, counters, metrics), and putting it back."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor

from ..landscape import Restore
from .contents import SMALL, Copies, Mark, is_plain, size_of
from .holders import Holder
from .state import Found, Search, kind_of
from .streams import position, remember_generators, same_position

logger = logging.getLogger(__name__)

LONG = 1000
"""Entries up to which a container is looked into in every pass."""

AT_FIRST = 64 << 20
"""Bytes of large contents that are copied while it is unknown whether they move."""


class Records:
    """The state of an object that its own code may write in passing: whatever hangs on it.

    Trainers count tokens and collect metrics while they compute a loss; modules keep statistics,
    teachers, queues. Everything is remembered by identity and content and put back into the same
    objects. What is large (1 MB, 1000 entries) costs too much for that in every pass: in the first
    update it is found out whether it moves; from then on what does is copied and what does not is
    watched, and a warning says once if it moves after all. A large container that only grows is cut
    back.

    Args:
        owner: the object.
        but: names of attributes to leave alone, such as the training data.
        search: what belongs to the state.
        trained: returns the tensors that return by themselves.
    """

    def __init__(
        self,
        owner: object,
        but: Collection[str] = (),
        search: Search | None = None,
        trained: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._attributes, self._but = vars(owner), frozenset(but)
        self._search, self._trained = search or Search(), trained
        self._settled = False
        self._moving: set[str] = set()
        self._warned: set[str] = set()
        self._plan: Plan | None = None
        self._latest: Snapshot | None = None

    def remember(self) -> Restore:
        """Return a function that makes everything what it is now, as often as called."""
        self._latest = snapshot = Snapshot(self._current_plan())

        def restore() -> None:
            if not self._settled:
                self._learn(snapshot)
            if snapshot is self._latest:  # nothing but the pass that now ends has come between
                self._warn_streams(snapshot.streams_that_moved())
            self._warn(snapshot.put_back())

        return restore

    def settle(self) -> None:
        """Note that the first update is done: what moves is now known."""
        if self._latest is not None and not self._settled:
            self._learn(self._latest)
            self._settled, self._plan = True, None
        self._latest = None

    def _learn(self, snapshot: Snapshot) -> None:
        self._moving |= snapshot.large_that_moved()

    def _warn(self, lost: list[str]) -> None:
        """Say once what moved in a pass and was not copied before; from now on it is."""
        if not lost:
            return
        self._moving |= set(lost)
        self._plan = None
        fresh = [name for name in lost if name not in self._warned]
        self._warned |= set(fresh)
        if fresh:
            logger.warning(
                f"A pass changed {', '.join(fresh[:8])}{' and more' if len(fresh) > 8 else ''}, "
                "too large to be copied before it was known to move: this update's other passes "
                "saw, or left, the change. From now on it is put back after each of them."
            )

    def _warn_streams(self, names: list[str]) -> None:
        """Say once which iterators a pass has drawn from that is not the clean one."""
        for name in names:
            if name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    f"A pass that is not the clean one has drawn from {name}, which cannot be put "
                    "back, so the passes of an update see different data: draw while "
                    "self.sam_pass.kind is 'clean', and keep what was drawn for the other passes."
                )

    def _current_plan(self) -> Plan:
        plan = self._plan
        if plan is None or not self._settled or not plan.is_current():
            found = self._search(self._attributes, self._but, self._asleep)
            found.trained.extend(self._trained())
            self._plan = plan = Plan(found, self._moving, at_first=not self._settled)
        return plan

    def _asleep(self, holder: Holder) -> bool:
        long = self._settled and len(holder.value) > LONG
        return long and holder.name not in self._moving


class Plan:
    """How to remember what was found: what to copy, and what to watch.

    Args:
        found: what was found.
        moving: names of what is to be copied though it is large.
        at_first: copy large contents, too, as far as there is room.
    """

    def __init__(self, found: Found, moving: set[str], at_first: bool) -> None:
        self.found, self.at_first = found, at_first
        self._views = [view for holder in found.holders for view in holder.views()]
        self.held = [holder.copy() for holder in found.holders]
        self.identities = self.identities_now()
        own = {_storage(t) for t in found.trained}
        contents = [(n, c) for n, c in found.contents if _storage(c) not in own]
        self.names = {id(c): n for n, c in contents}
        self.copied, self.watched = _sort(contents, moving, AT_FIRST if at_first else 0)
        self._places = self._places_now()

    def identities_now(self) -> list[int]:
        """Return the identities of all keys and values that are held now, in their order."""
        return list(map(id, itertools.chain.from_iterable(self._views)))

    def is_current(self) -> bool:
        """Return whether the same things can be moved now; what is held is taken over."""
        if self._places_now() != self._places or any(t.requires_grad for t in self._tensors()):
            return False
        now = self.identities_now()
        if now != self.identities:
            held = list(self.held)  # snapshots keep the old one
            for i, holder in enumerate(self.found.holders):
                if not holder.same(held[i]):
                    before, held[i] = held[i], holder.copy()
                    if not _only_leaves(holder, before, held[i]):
                        return False
            self.held, self.identities = held, now
        return True

    def _tensors(self) -> list[Tensor]:
        return [c for c in self.copied if isinstance(c, Tensor)]

    def _places_now(self) -> list[int]:
        return [t.data_ptr() for t in self._tensors()]


class Snapshot:
    """What everything of a plan is at one moment."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._held, self._identities = plan.held, plan.identities
        self._copies = Copies(plan.copied)
        self._marks = [(plan.names[id(c)], Mark(c, plan.at_first)) for c in plan.watched]
        self._lengths = [Length(holder) for holder in plan.found.watched]
        self._generators = remember_generators(plan.found.generators)
        self._positions = [(name, one, position(one)) for name, one in plan.found.streams]

    def streams_that_moved(self) -> list[str]:
        """Return the names of iterators that stand somewhere else."""
        pairs = ((name, position(one), before) for name, one, before in self._positions)
        return [name for name, now, before in pairs if not same_position(now, before)]

    def put_back(self) -> list[str]:
        """Make everything what it was; return the names of what cannot be."""
        if self._plan.identities_now() != self._identities:
            for holder, copy in zip(self._plan.found.holders, self._held, strict=True):
                if not holder.same(copy):
                    holder.put_back(copy)
        self._copies.put_back()
        self._generators()
        lost = [name for name, mark in self._marks if mark.moved()]
        return lost + [length.name for length in self._lengths if not length.put_back()]

    def large_that_moved(self) -> set[str]:
        """Return the names of large things that are not what they were, or hold such things."""
        plan = self._plan
        pairs = list(zip(plan.found.holders, self._held, strict=True))
        moved = {plan.names[i] for i in self._copies.moved()}
        moved |= {holder.name for holder, copy in pairs if not holder.grown(copy)}
        large = {plan.names[id(c)] for c in plan.copied if size_of(c) > SMALL} & moved
        for holder, copy in pairs:
            inside = f"{holder.name}["
            if len(copy) > LONG and any(n == holder.name or n.startswith(inside) for n in moved):
                large.add(holder.name)
        return large


class Length:
    """The length of a large container that is not looked into, and some of its entries."""

    def __init__(self, holder: Holder) -> None:
        self._holder, self._length = holder, len(holder.value)
        self._sample = holder.sample(self._length)

    @property
    def name(self) -> str:
        """What a warning calls the container."""
        return self._holder.name

    def put_back(self) -> bool:
        """Cut off what was added; return whether the rest looks as it did."""
        if len(self._holder.value) < self._length:
            return False
        sample = self._holder.sample(self._length)
        if list(map(id, sample)) != list(map(id, self._sample)):
            return False
        return self._holder.cut(self._length)


def _sort(
    contents: list[tuple[str, Any]], moving: set[str], room: int
) -> tuple[list[Any], list[Any]]:
    """Return the contents to copy, and those to watch, the smallest first."""
    copied, watched = [], []
    for name, content in sorted(contents, key=lambda pair: size_of(pair[1])):
        size = size_of(content)
        large = size > SMALL and name not in moving
        if not is_plain(content) or (large and size > room):
            watched.append(content)
            continue
        room -= size if large else 0
        copied.append(content)
    return copied, watched


def _storage(content: Any) -> Any:
    """Return what tells whether two tensors share their memory."""
    if not isinstance(content, Tensor) or not is_plain(content):
        return id(content)
    return content.untyped_storage().data_ptr() or id(content)


def _only_leaves(holder: Holder, before: Any, now: Any) -> bool:
    """Whether whatever a container holds anew has no content of its own."""
    old = set(map(id, holder.values(before)))
    return all(kind_of(v) == "leaf" for v in holder.values(now) if id(v) not in old)
