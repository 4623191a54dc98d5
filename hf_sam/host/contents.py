# SPDX-License-Identifier: Apache-2.0
"""The content of tensors and arrays: copied, or watched where a copy would cost too much."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SMALL = 1 << 20
"""Bytes up to which a content is copied in every pass."""

CHUNK = 1 << 20
"""Elements that a checksum looks at together."""

SAMPLED = 64
"""Bytes of an array that is only watched which are looked at."""


def size_of(content: Any) -> int:
    """Return the size in bytes."""
    return int(content.nbytes)


def is_plain(content: Any) -> bool:
    """Return whether a content can be copied and written back: a strided tensor, or an array."""
    if not isinstance(content, Tensor):
        return True
    strided = content.layout is torch.strided and not content.is_meta
    return strided and not content.is_inference() and _writable(content)


def _writable(tensor: Tensor) -> bool:
    """Whether no two of its elements lie in the same place, and it is no tensor of tensors."""
    expanded = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return not expanded and not hasattr(tensor, "_local_tensor")


class Copies:
    """Contents with a copy of each.

    Args:
        contents: tensors that `is_plain` says yes to, and arrays.
    """

    def __init__(self, contents: Sequence[Any]) -> None:
        self._arrays = [(c, c.copy()) for c in contents if not isinstance(c, Tensor)]
        self._tensors = [c for c in contents if isinstance(c, Tensor)]
        self._storages = [t.data for t in self._tensors]
        # One call for all of them: a normalisation layer has three each.
        self._copies = list(torch._foreach_clone(self._storages)) if self._storages else []

    def put_back(self) -> None:
        """Write the copies into the same memory, which the same tensors hold again."""
        for tensor, storage in zip(self._tensors, self._storages, strict=True):
            if tensor.data_ptr() != storage.data_ptr() or tensor.shape != storage.shape:
                tensor.data = storage
        if self._tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._tensors, self._copies)
        for array, copy in self._arrays:
            array[...] = copy

    def moved(self) -> set[int]:
        """Return the ids of the contents that differ from their copies."""
        pairs = [*zip(self._tensors, self._copies, strict=True)]
        moved = {id(t) for t, copy in pairs if not _same(t, copy)}
        return moved | {id(a) for a, copy in self._arrays if a.tobytes() != copy.tobytes()}


class Mark:
    """What a large content looks like now, without a copy.

    Args:
        content: a tensor, whose version counts writes, or an array, of which some bytes are kept.
        whole: look at all of it: some writes leave the version as it is.
    """

    def __init__(self, content: Any, whole: bool) -> None:
        self._content, self._whole = content, whole
        self._storage = content.data if isinstance(content, Tensor) else None
        self._now = self._look()

    def _look(self) -> Any:
        content = self._content
        if not isinstance(content, Tensor):
            step = 1 if self._whole else max(content.size // SAMPLED, 1)
            return zlib.crc32(content.reshape(-1)[::step].tobytes())
        version = None if content.is_inference() else content._version
        return version, _checksum(content) if self._whole and is_plain(content) else None

    def moved(self) -> bool:
        """Return whether it was written to; memory that was exchanged is given back first."""
        storage = self._storage
        if storage is not None and not hasattr(storage, "_local_tensor"):
            if storage.layout is torch.strided and storage.data_ptr() != self._content.data_ptr():
                self._content.data = storage
        return bool(self._look() != self._now)


def _same(tensor: Tensor, copy: Tensor) -> bool:
    """Whether a tensor has a copy's bytes, so that NaN equals itself."""
    form = tensor.shape == copy.shape and tensor.dtype == copy.dtype
    return form and torch.equal(_bytes(tensor), _bytes(copy))


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat.view(torch.uint8)


def _checksum(tensor: Tensor) -> list[int]:
    """Return a checksum of a tensor's bytes that depends on their order."""
    flat = _bytes(tensor)
    aligned = flat.storage_offset() % 8 == 0 and flat.numel() % 8 == 0
    if flat.dtype is torch.uint8 and aligned:
        flat = flat.view(torch.int64)
    places = torch.arange(1, CHUNK + 1, device=flat.device)
    sums = [(piece * places[: len(piece)]).sum() for piece in flat.split(CHUNK)]
    return list(torch.stack(sums).tolist()) if sums else []
