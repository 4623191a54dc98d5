# SPDX-License-Identifier: Apache-2.0
"""In what a run that goes on from a checkpoint differs from the run that saved it."""

from __future__ import annotations

from typing import Any

import torch

from .. import __version__


def about() -> dict[str, Any]:
    """Return what a checkpoint says of its run beside the method."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if several else 1
    return {"processes": processes, "hf_sam": __version__, "torch": torch.__version__}


def changes(
    before: dict[str, Any], saved: dict[str, Any], method: dict[str, Any]
) -> tuple[str, str] | None:
    """Return, as text, the values that differ: those of the checkpoint, and those of this run.

    Args:
        before: what `about` returned when the checkpoint was saved.
        saved: the description of the method that saved it.
        method: the description of the method that goes on, which has the same parts.
    """
    was, now = before | fields(saved), about() | fields(method)
    other = [key for key in now if key in was and was[key] != now[key]]
    if not other:
        return None
    texts = (", ".join(f"{key}={given[key]!r}" for key in other) for given in (was, now))
    return next(texts), next(texts)


def fields(method: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Return a described method's hyper-parameters, those of its parts by dotted names."""
    found: dict[str, Any] = {}
    for key, value in method.items():
        parts = enumerate(value) if isinstance(value, list) else [(None, value)]
        for i, part in parts:
            name = within + (key if i is None else f"{key}.{i}")
            found.update(fields(part, name + ".") if isinstance(part, dict) else {name: part})
    return {key: value for key, value in found.items() if key.rpartition(".")[2] != "name"}


def kind(method: dict[str, Any]) -> str:
    """Return the names of a described method and of its parts, on which its state depends."""
    inner = [kind(v) for v in method.values() if isinstance(v, dict)]
    inner += [
        kind(v)
        for value in method.values()
        if isinstance(value, list)
        for v in value
        if isinstance(v, dict)
    ]
    return method["name"] + (f"({', '.join(inner)})" if inner else "")
