# SPDX-License-Identifier: Apache-2.0
"""The content of tensors and arrays: copied, or watched where a copy would cost too much."""

from __future__ import annotations

import operator
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 20
"""Bytes up to which a content is copied in every pass."""

PIECE = 1 << 16
"""Bytes that are compared with a file together."""

SAMPLED = 64
"""Bytes of an array that is only watched which are looked at."""

# Read in C, for there may be hundreds of tensors.
PLACE = operator.methodcaller("data_ptr")
SHAPE = operator.attrgetter("shape")
VERSION = operator.attrgetter("_version")
WITH_GRADIENT = operator.attrgetter("requires_grad")

Forms = tuple[list[int], list[torch.Size]]


def size_of(content: Any) -> int:
    """Return the size in bytes."""
    return int(content.nbytes)


def is_plain(content: Any) -> bool:
    """Return whether a content can be copied and written back: a strided tensor, or an array."""
    if not isinstance(content, Tensor):
        return not isinstance(content, np.memmap)
    strided = content.layout is torch.strided and not content.is_meta
    return strided and not content.is_inference() and _writable(content)


def _writable(tensor: Tensor) -> bool:
    """Whether no two of its elements lie in the same place, and it is no tensor of tensors."""
    expanded = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return not expanded and not hasattr(tensor, "_local_tensor")


unchanged: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
"""A context after which tensors count no write, where they end up as they were."""


class Copies:
    """Contents with a copy of each.

    Args:
        contents: tensors that `is_plain` says yes to, and arrays.
    """

    def __init__(self, contents: Sequence[Any]) -> None:
        self._arrays = [(c, c.copy()) for c in contents if not isinstance(c, Tensor)]
        self._tensors = [c for c in contents if isinstance(c, Tensor)]
        self._storages = [t.data for t in self._tensors]
        self._forms = forms(self._storages)
        self._copies = [torch.empty_like(s) for s in self._storages]
        if self._storages:  # one call for all of them: a normalisation layer has three each
            torch._foreach_copy_(self._copies, self._storages)

    def put_back(self) -> None:
        """Write the copies into the same memory, which the same tensors hold again."""
        hold_all(self._tensors, self._storages, self._forms)
        counted = tuple(t for t in self._tensors if not t.is_inference())
        if self._tensors:
            # A graph that began before may hold them, and finds what it held.
            with torch.no_grad(), unchanged(counted):
                torch._foreach_copy_(self._tensors, self._copies)
        for array, copy in self._arrays:
            array[...] = copy

    def moved(self) -> set[int]:
        """Return the ids of the contents that differ from their copies."""
        pairs = [*zip(self._tensors, self._copies, strict=True)]
        moved = {id(t) for t, copy in pairs if not _same(t, copy)}
        return moved | {id(a) for a, copy in self._arrays if a.tobytes() != copy.tobytes()}


class Spill:
    """Contents with a copy of each in a temporary file, which takes no memory.

    Args:
        contents: as in `Copies`.
    """

    def __init__(self, contents: Sequence[Any]) -> None:
        self._contents = list(contents)
        self._storages = [c.data if isinstance(c, Tensor) else c for c in contents]
        self._file = tempfile.TemporaryFile() if contents else None
        if self._file is None:
            return
        weakref.finalize(self, self._file.close)
        for storage in self._storages:
            for piece in _pieces(storage):
                self._file.write(piece)

    def put_back(self) -> None:
        """Write the copies of what has moved into the same memory."""
        moved = self.moved()
        place = 0
        for content, storage in zip(self._contents, self._storages, strict=True):
            if isinstance(content, Tensor):
                hold(content, storage)
            if id(content) in moved and self._file is not None:
                self._file.seek(place)
                _fill(content, bytearray(self._file.read(content.nbytes)))
            place += content.nbytes

    def moved(self) -> set[int]:
        """Return the ids of the contents that differ from their copies."""
        if self._file is None:
            return set()
        self._file.seek(0)
        moved = set()
        for content, storage in zip(self._contents, self._storages, strict=True):
            pieces = [self._file.read(len(p)) == p.tobytes() for p in _pieces(storage)]
            other = isinstance(content, Tensor) and content.data_ptr() != storage.data_ptr()
            if other or not all(pieces):
                moved.add(id(content))
        return moved


class Watched:
    """Contents without a copy: some writes leave no mark.

    Args:
        contents: tensors, whose versions count writes, and arrays, of which some bytes are kept.

    Attributes:
        tensors: the tensors whose memory can be exchanged.
    """

    def __init__(self, contents: Sequence[Any]) -> None:
        self.tensors = [c for c in contents if _local(c)]
        self._others = [c for c in contents if not _local(c)]
        self._storages: list[Tensor] = []
        self._forms: Forms | None = None

    def mark(self) -> Mark:
        """Return what shows which contents were written to after now."""
        now = forms(self.tensors)
        if now != self._forms:
            self._storages, self._forms = [t.data for t in self.tensors], now
        return Mark(self.tensors, self._storages, now, self._others)

    def forget(self) -> None:
        """Let go of the memory, which between updates may move to another device."""
        self._storages, self._forms = [], None


class Mark:
    """What contents look like at one moment; see `Watched`."""

    def __init__(
        self, tensors: list[Tensor], storages: list[Tensor], forms: Forms, others: list[Any]
    ) -> None:
        self._tensors, self._storages, self._forms = tensors, storages, forms
        self._others = others
        self._now = self._look()

    def _look(self) -> list[Any]:
        return [*map(VERSION, self._tensors), *map(_look, self._others)]

    def moved(self) -> list[Any]:
        """Return what was written to; memory that was exchanged is given back first."""
        hold_all(self._tensors, self._storages, self._forms)
        now = self._look()
        if now == self._now:
            return []
        contents = [*self._tensors, *self._others]
        return [c for c, a, b in zip(contents, now, self._now, strict=True) if a != b]


def marks_of(contents: Sequence[Any]) -> list[Any]:
    """Return what many small contents look like now."""
    return [(_look(c), c.data_ptr() if _local(c) else None) for c in contents]


def hold(tensor: Tensor, storage: Tensor) -> None:
    """Have a tensor hold the memory that it held before."""
    if tensor.data_ptr() != storage.data_ptr() or tensor.shape != storage.shape:
        tensor.data = storage


def forms(tensors: Sequence[Tensor]) -> Forms:
    """Return where tensors have their memory, and their shapes."""
    return list(map(PLACE, tensors)), list(map(SHAPE, tensors))


def hold_all(tensors: Sequence[Tensor], storages: Sequence[Tensor], before: Forms) -> None:
    """Have tensors hold the memory that they held before."""
    if forms(tensors) != before:
        for tensor, storage in zip(tensors, storages, strict=True):
            hold(tensor, storage)


def _local(content: Any) -> bool:
    return isinstance(content, Tensor) and is_plain(content)


def _look(content: Any) -> Any:
    if isinstance(content, Tensor):
        return None if content.is_inference() else content._version
    step = max(content.nbytes // SAMPLED, 1) if content.nbytes > SMALL else 1
    return zlib.crc32(content.reshape(-1)[::step].tobytes())


def _pieces(content: Any) -> Iterator[Any]:
    """Yield the bytes of a content, piece by piece, as arrays on the CPU."""
    if isinstance(content, Tensor):
        for piece in _bytes(content).split(PIECE):
            yield piece.cpu().view(torch.uint8).numpy()
    else:
        yield np.ascontiguousarray(content).reshape(-1).view(np.uint8)


def _fill(content: Any, data: bytearray) -> None:
    """Write bytes into a tensor or an array."""
    if isinstance(content, Tensor):
        values = torch.frombuffer(data, dtype=content.dtype).view(content.shape)
        with torch.no_grad():
            content.copy_(values)
    else:
        content[...] = np.frombuffer(data, dtype=content.dtype).reshape(content.shape)


def _same(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor has a copy's bytes, so that NaN equals itself."""
    form = tensor.shape == copy.shape and tensor.dtype == copy.dtype
    return form and torch.equal(_bytes(tensor), _bytes(copy))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    return flat.view(torch.uint8)
