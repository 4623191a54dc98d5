# SPDX-License-Identifier: Apache-2.0
"""Method state in a checkpoint folder: what the method was, and one tensor per state entry and
parameter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..vector import StateValue, Vector

logger = logging.getLogger(__name__)

DESCRIPTION = "sam_state.json"
TENSORS = "sam_state.safetensors"
SEPARATOR = "//"


def save_state(
    folder: str | Path, method: dict[str, Any], state: dict[str, StateValue], names: Sequence[str]
) -> None:
    """Write a method's description and state into a checkpoint folder."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    for key, value in state.items():
        if isinstance(value, Vector):
            entries = zip(names, value, strict=True)
            tensors.update(
                (f"{key}{SEPARATOR}{n}", t.contiguous()) for n, t in entries if t is not None
            )
        elif isinstance(value, Tensor):
            tensors[key] = value.contiguous()
        else:
            numbers[key] = value
    vectors = [key for key, value in state.items() if isinstance(value, Vector)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"method": method, "numbers": numbers, "vectors": vectors}, indent=2)
    (Path(folder) / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, str(Path(folder) / TENSORS))


def load_state(
    folder: str | Path, method: dict[str, Any], names: Sequence[str], params: Sequence[Tensor]
) -> dict[str, StateValue]:
    """Return the state that `save_state` wrote, on the parameters' devices.

    A checkpoint of another method, or of none, gives an empty state and one warning: state starts
    at first use.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        if method["name"] != "Plain":
            logger.warning(
                f"{folder} was saved without SAM; {method['name']} starts here with fresh state."
            )
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if kind(saved["method"]) != kind(method):
        logger.warning(
            f"{folder} was saved with {kind(saved['method'])}, and training goes on with "
            f"{kind(method)}: "
            "the saved method state is left aside."
        )
        return {}
    tensors_path = Path(folder) / TENSORS
    tensors = load_file(str(tensors_path)) if tensors_path.is_file() else {}
    state: dict[str, StateValue] = dict(saved["numbers"])
    for key in saved["vectors"]:
        found = [tensors.pop(f"{key}{SEPARATOR}{name}", None) for name in names]
        state[key] = Vector(
            None if t is None else t.to(p.device) for t, p in zip(found, params, strict=True)
        )
    device = params[0].device if params else torch.device("cpu")
    state.update((key, t.to(device)) for key, t in tensors.items() if SEPARATOR not in key)
    return state


def kind(method: dict[str, Any]) -> str:
    """Return the names of a described method and of the parts in it: what its state belongs to."""
    inner = [kind(v) for v in method.values() if isinstance(v, dict)]
    inner += [
        kind(v)
        for value in method.values()
        if isinstance(value, list)
        for v in value
        if isinstance(v, dict)
    ]
    return method["name"] + (f"({', '.join(inner)})" if inner else "")
