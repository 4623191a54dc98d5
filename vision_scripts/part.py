# SPDX-License-Identifier: Apache-2.0
"""The examples of one stage, and the guard under which anything of theirs is read."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shared_scripts.arguments import InputError

PLAIN_ERRORS = (OSError, RuntimeError, SyntaxError, ValueError)
"""Errors whose text says enough; the others need the name of their kind."""


@dataclass(frozen=True)
class Source:
    """One encoded image.

    Attributes:
        name: file and row, as errors name it.
        read: returns the bytes of the encoded image.
    """

    name: str
    read: Callable[[], bytes]


@contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """Turn whatever a foreign file makes a library raise into one line that names the file.

    Args:
        name: of the file, and of the row in it.
        what: it should be, with its article: "an image".

    Raises:
        InputError: something was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders raise what they like: struct.error, KeyError, TypeError
        raise InputError(
            f"{name}: cannot be read as {what}: {said(error)}; mend it or take it out"
        ) from error


def said(error: Exception) -> str:
    """Return what an error says in one line, with its kind where the text needs it."""
    text, kind = textwrap.shorten(str(error), 300, placeholder=" ..."), type(error).__name__
    if not text:
        return kind
    return text if isinstance(error, PLAIN_ERRORS) else f"{kind}: {text}"


def shown(path: object) -> str:
    """Return a path as text that can be printed, also where its bytes are no UTF-8."""
    return os.fsencode(str(path)).decode(errors="backslashreplace")


@dataclass
class Part:
    """The examples of one stage, images not yet read.

    Attributes:
        images: encoded.
        labels: name or number of the class, as the source has it.
        names: of the classes in the order of their numbers, where the source declares them; labels
            are numbers then.
        source: folder, file or Hub path, as errors name it.
        whole: what the examples were taken from, if they are not all. Its classes are theirs.
    """

    images: list[Source]
    labels: list[Any]
    names: tuple[str, ...] | None
    source: str
    whole: Part | None = None

    def take(self, rows: Iterable[int]) -> Part:
        """Return some of the examples."""
        rows = list(rows)
        images, labels = [self.images[row] for row in rows], [self.labels[row] for row in rows]
        return replace(self, images=images, labels=labels, whole=self.whole or self)

    def name(self, label: Any) -> str | None:
        """Return the name of a label's class; None if it is no class."""
        if label is None or (isinstance(label, str) and not label.strip()):
            return None
        if not isinstance(label, int):
            return label if self.names is None or label in self.names else None
        if label < 0 or (self.names is not None and label >= len(self.names)):
            return None
        return str(label) if self.names is None else self.names[label]

    @cached_property
    def present(self) -> frozenset[str]:
        """The classes of which the whole source has an example."""
        whole = self.whole or self
        names = {whole.name(label) for label in whole.labels}
        return frozenset(name for name in names if name is not None)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that the source declares, else those of which it has an example, sorted."""
        if self.names is not None:
            return self.names
        whole = self.whole or self
        numbers = sorted({n for n in whole.labels if isinstance(n, int) and n >= 0})
        in_order = dict.fromkeys([*map(str, numbers), *sorted(self.present)])
        return tuple(in_order)
