# SPDX-License-Identifier: Apache-2.0
"""What a pass moves beside gradients (buffers, counters, metrics), and putting it back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, nn

from ..landscape import Restore
from .contents import (
    SMALL,
    WITH_GRADIENT,
    Copies,
    Spill,
    Watched,
    forms,
    is_plain,
    marks_of,
    size_of,
)
from .holders import Held, Holder, Quiet, identical
from .state import Found, Search, kind_of
from .streams import position, remember_generators, same_position

logger = logging.getLogger(__name__)

LONG = 1000
"""Entries up to which a container is looked into in every pass."""

AT_FIRST = 1 << 30
"""Bytes that are kept in a file while it is unknown whether they move."""


class Records:
    """The state of an object that its own code may write in passing: whatever hangs on it.

    Trainers count tokens and collect metrics while they compute a loss; modules keep statistics,
    teachers, queues. Everything is remembered by identity and content and put back into the same
    objects. What is large (1 MB, 1000 entries) and weights without gradient cost too much for that
    in every pass: in the first update it is found out, with a copy in a temporary file, whether
    they move; from then on what does is copied and what does not is watched, and a warning says
    once if it moves after all. A long container that only grows is cut back.

    Args:
        owner: the object.
        but: names of attributes to leave alone, such as the training data.
        search: what belongs to the state.
        trained: returns the tensors that return by themselves.
        settled: only watch what is large from the start.
        keeps: returns whether a later pass finds what the clean one left in the object's own
            attributes and containers, where it otherwise starts over.
    """

    def __init__(
        self,
        owner: object,
        but: Collection[str] = (),
        search: Search | None = None,
        trained: Callable[[], Iterable[Tensor]] = tuple,
        settled: bool = False,
        keeps: Callable[[], bool] = lambda: False,
    ) -> None:
        self._attributes, self._but = vars(owner), frozenset(but)
        self._search, self._trained, self._keeps = search or Search(), trained, keeps
        self._settled = settled
        self._moving: set[str] = set()
        self._restless: set[str] = set()
        self._warned: set[str] = set()
        self._plan: Plan | None = None
        self._latest: Snapshot | None = None

    def remember(self) -> Restore:
        """Return a function that makes everything what it is now, as often as called."""
        self._latest = snapshot = Snapshot(self._current_plan())

        def restore() -> None:
            if not self._settled:
                self._learn(snapshot)
            ends = snapshot is self._latest  # else a later pass begins
            if ends:
                self._warn_streams(snapshot.streams_that_moved())
            self._warn(snapshot.put_back(own=ends or not self._keeps()))

        return restore

    def settle(self) -> None:
        """Note that the first update is done: what moves is now known."""
        if self._latest is not None and not self._settled:
            self._learn(self._latest)
            self._settled, self._plan = True, None
        if self._plan is not None:
            self._plan.watched.forget()
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
                    "back, so passes see different data: draw while self.sam_pass.kind is 'clean' "
                    "and keep what was drawn in an attribute for the other passes (pass number 0 "
                    "asks the loss before the first update)."
                )

    def _current_plan(self) -> Plan:
        plan = self._plan
        if plan is None or not self._settled or not plan.is_current():
            found = self._search(self._attributes, self._but, self._asleep, self._grouped)
            found.trained.extend(self._trained())
            room = 0 if self._settled else AT_FIRST
            self._plan = plan = Plan(found, self._moving, self._restless, room)
        return plan

    def _grouped(self, holder: Holder) -> bool:
        return len(holder.value) > LONG and holder.name not in self._moving

    def _asleep(self, holder: Holder) -> bool:
        return self._settled and self._grouped(holder)


class Plan:
    """How to remember what was found: what to copy, and what to watch.

    Containers that have never moved are looked at together (see `Quiet`), others one by one.

    Args:
        found: what was found.
        moving: names of what is to be copied though it is large.
        restless: names of the containers that have moved; more are added.
        room: bytes of what is not known to move that may be kept in a file.

    Attributes:
        held: the containers that have moved, with what they hold.
    """

    def __init__(self, found: Found, moving: set[str], restless: set[str], room: int) -> None:
        self.found, self._restless = found, restless
        apart = [holder for holder in found.holders if self._moves(holder)]
        self.held: list[Held] = [(holder, holder.held()) for holder in apart]
        self.quiet = Quiet([holder for holder in found.holders if not self._moves(holder)])
        own = {_storage(t) for t in found.trained}
        contents = [(n, c) for n, c in found.contents if _storage(c) not in own]
        self.names = {id(c): n for n, c in contents}
        self.copied, self.spilled, watched = _sort(contents, moving, room)
        self.watched = Watched(watched)
        self._tensors = [c for c in self.copied if isinstance(c, Tensor)] + self.watched.tensors
        self._forms = forms(self._tensors)

    def _moves(self, holder: Holder) -> bool:
        return holder.name in self._restless or not holder.live()

    def wake(self, moved: list[Held]) -> None:
        """Look at containers one by one from now on."""
        if moved:
            self._restless |= {holder.name for holder, _ in moved}
            self.quiet = self.quiet.without([holder for holder, _ in moved])
            known = {id(holder) for holder, _ in self.held}
            self.held = self.held + [pair for pair in moved if id(pair[0]) not in known]

    def is_current(self) -> bool:
        """Return whether the same things can be moved now; what is held is taken over."""
        unfrozen = True in map(WITH_GRADIENT, self._tensors)
        if unfrozen or forms(self._tensors) != self._forms:
            return False
        self.wake(self.quiet.moved())
        held = [(holder, holder.held()) for holder, _ in self.held]
        for (holder, before), (_, now) in zip(self.held, held, strict=True):
            if not identical(now, before) and not _only_leaves(holder, before, now):
                return False
        self.held = held  # a new list: snapshots keep the old one
        return True


class Snapshot:
    """What everything of a plan is at one moment."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._held, self._quiet = plan.held, plan.quiet
        self._copies, self._spill = Copies(plan.copied), Spill(plan.spilled)
        self._mark = plan.watched.mark()
        self._groups = [(name, g, marks_of(g)) for name, g in plan.found.grouped.items()]
        self._lengths = [Length(holder) for holder in plan.found.watched]
        self._generators = remember_generators(plan.found.generators)
        self._positions = [(name, one, position(one)) for name, one in plan.found.streams]

    def streams_that_moved(self) -> list[str]:
        """Return the names of iterators that stand somewhere else."""
        pairs = ((name, position(one), before) for name, one, before in self._positions)
        return [name for name, now, before in pairs if not same_position(now, before)]

    def put_back(self, own: bool) -> list[str]:
        """Make everything what it was; return the names of what cannot be.

        Args:
            own: with the attributes and containers of the owner itself.
        """
        moved = self._quiet.moved()
        for holder, held in (*self._held, *moved):
            if (own or not holder.own) and not holder.same(held):
                holder.put_back(held)
        self._plan.wake(moved)
        self._copies.put_back()
        self._spill.put_back()
        self._generators()
        lost = self._groups_that_moved()
        lost += [self._plan.names[id(c)] for c in self._mark.moved()]
        return lost + [length.name for length in self._lengths if not length.put_back()]

    def _groups_that_moved(self) -> list[str]:
        return [name for name, group, marks in self._groups if marks_of(group) != marks]

    def large_that_moved(self) -> set[str]:
        """Return the names of large things that are not what they were, or hold such things."""
        plan = self._plan
        pairs = (*self._held, *self._quiet.moved())
        moved = {holder.name for holder, held in pairs if not holder.grown(held)}
        large = {plan.names[i] for i in self._spill.moved()} | set(self._groups_that_moved())
        both = (*self._held, *self._quiet.all)
        long = {holder.name for holder, held in both if len(holder.values(held)) > LONG}
        return large | {n for n in long if any(m == n or m.startswith(f"{n}[") for m in moved)}


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
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the contents to copy, those to keep in a file, and those to watch."""
    copied, spilled, watched = [], [], []
    for name, content in sorted(contents, key=lambda pair: size_of(pair[1])):
        holds_objects = not isinstance(content, Tensor) and content.dtype == object
        costly = size_of(content) > SMALL or isinstance(content, nn.Parameter)
        if not is_plain(content):
            watched.append(content)
        elif not costly or holds_objects or name in moving:
            copied.append(content)
        elif size_of(content) <= room:
            room -= size_of(content)
            spilled.append(content)
        else:
            watched.append(content)
    return copied, spilled, watched


def _storage(content: Any) -> Any:
    """Return what tells whether two tensors share their memory."""
    if not isinstance(content, Tensor) or not is_plain(content):
        return id(content)
    return content.untyped_storage().data_ptr() or id(content)


def _only_leaves(holder: Holder, before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether whatever a container holds anew has no content of its own."""
    old = set(map(id, holder.values(before)))
    return all(kind_of(v) == "leaf" for v in holder.values(now) if id(v) not in old)
