# SPDX-License-Identifier: Apache-2.0
"""`Part`: the base class of parts and methods, with checked fields and state that is saved."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from ..landscape import Landscape
from ..vector import Placement, StateValue, Vector


class State(dict[str, StateValue]):
    """The values that a part carries from update to update, by name; empty until its first use."""

    def vector(self, key: str) -> Vector | None:
        """Return the vector of this name, or None before its first use."""
        value = self.get(key)
        assert value is None or isinstance(value, Vector), f"state {key!r} is no Vector"
        return value

    def tensor(self, key: str) -> Tensor | None:
        """Return the tensor of this name, or None before its first use."""
        value = self.get(key)
        assert value is None or isinstance(value, Tensor), f"state {key!r} is no Tensor"
        return value

    def number(self, key: str, default: float) -> float:
        """Return the number of this name, or `default` before its first use."""
        value = self.get(key, default)
        assert isinstance(value, (int, float)), f"state {key!r} is no number"
        return value


@dataclass
class Part:
    """A dataclass whose fields are its hyper-parameters, and whose `state` outlives an update.

    Parts nest: a field may be a part or a tuple of parts, and describing, saving and loading follow
    the nesting. Whenever a field is set, its value is checked against the field's metadata: `low`
    and `high` (inclusive bounds), `whole` (a whole number), `choices` (beside bounds: other values
    than numbers), and `optional` (None is allowed). `grid` holds the values that `hf-sam tune`
    tries; those of an option include its default.

    Class attributes:
        stateful: whether the part itself keeps anything in `state`.
    """

    stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields in combination; subclasses extend this."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, after a check of its value against its metadata."""
        known = type(self).__dataclass_fields__
        if name in known:
            check_value(type(self).__name__, name, value, known[name].metadata)
        # Only a name that is close to a field's is a typo; others are attributes of a subclass.
        elif not name.startswith("_") and nearest(name, known):
            kind = type(self).__name__
            raise AttributeError(f"{kind} has no field {name!r}{nearest(name, known)}")
        super().__setattr__(name, value)

    @property
    def state(self) -> State:
        """This part's own state; empty until its first use."""
        # It is no field, so that comparing, describing and `replace` see hyper-parameters only.
        return self.__dict__.setdefault("_state", State())

    def children(self) -> Iterator[tuple[str, Part]]:
        """Yield a pair (name, part) for each part among the fields."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Part):
                yield f.name, value
            elif isinstance(value, tuple):
                yield from (
                    (f"{f.name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Part)
                )

    def walk(self) -> Iterator[Part]:
        """Yield this part and every part inside it."""
        yield self
        for _, child in self.children():
            yield from child.walk()

    @property
    def keeps_state(self) -> bool:
        """Whether this part, or one inside it, carries anything to the next update."""
        return any(part.stateful for part in self.walk())

    def state_dict(self) -> dict[str, StateValue]:
        """Return the state of this part and of all parts inside it, by dotted name."""
        state = dict(self.state)
        for name, child in self.children():
            state.update((f"{name}.{key}", value) for key, value in child.state_dict().items())
        return state

    def load_state_dict(self, state: dict[str, StateValue]) -> None:
        """Replace the state by one that `state_dict` returned."""
        below = dict(self.children())
        self.state.clear()  # an entry that was not saved must not survive
        for child_name, child in below.items():
            prefix = child_name + "."
            child.load_state_dict({
                k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)
            })
        self.state.update(
            (k, v) for k, v in state.items() if not any(k.startswith(n + ".") for n in below)
        )

    def realign(self, places: Sequence[int | None], placement: Placement) -> None:
        """Adapt the state to a changed set of parameters.

        Args:
            places: for each parameter, the index that it had before, or None for a new one.
            placement: how the parameters are spread over processes now.
        """
        for part in self.walk():
            part.realign_state(places, placement)

    def realign_state(self, places: Sequence[int | None], placement: Placement) -> None:
        """Reorder this part's own vectors; new parameters have no entry yet."""
        for key, value in self.state.items():
            if isinstance(value, Vector):
                entries = (None if i is None else value[i] for i in places)
                self.state[key] = Vector(entries, placement)

    def note(self, at: Landscape, update: Vector) -> None:
        """Look at an update that is done; only parts that look back to it need this.

        Args:
            at: the Landscape of the update.
            update: the gradient that the optimizer will get. It must not be changed.
        """

    def describe(self) -> dict[str, Any]:
        """Return the name and the fields in a form that JSON can hold."""
        return {
            "name": type(self).__name__,
            **{f.name: _plain(getattr(self, f.name)) for f in fields(self)},
        }


def check_value(owner: str, name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a field's value breaks the rules of its metadata."""
    choices, numbers = rules.get("choices"), "low" in rules
    if choices is not None and value not in choices and not (numbers and _is_number(value)):
        raise ValueError(
            f"{owner}: {name}={value!r} is not one of {', '.join(map(str, choices))}"
            f"{', nor a number' if numbers else ''}{nearest(value, choices)}"
        )
    low, high = rules.get("low"), rules.get("high")
    if (
        (low is None and high is None)
        or isinstance(value, Part)
        or (value is None and rules.get("optional"))
        or (choices is not None and value in choices)
    ):
        return
    bounds = (
        f"from {low}"
        + ("" if high is None else f" to {high}")
        + (", a whole number" if rules.get("whole") else "")
    )
    if (
        not _is_number(value)
        or value < low
        or (high is not None and value > high)
        or (rules.get("whole") and value != int(value))
    ):
        raise ValueError(f"{owner}: {name}={value!r} is not allowed; give a finite number {bounds}")


def _is_number(value: Any) -> bool:
    # Python counts True as the integer 1.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def nearest(word: Any, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known word, or an empty text."""
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.describe()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
