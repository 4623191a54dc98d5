# SPDX-License-Identifier: Apache-2.0
"""Method state in a checkpoint folder.

It says what the method was, and has one tensor per state entry and parameter.
Where parameters are sharded each process writes its rows, with torch's distributed checkpoint; any
number of processes can read either form.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..landscape import Engine
from ..vector import WHOLE, StateValue, Vector

logger = logging.getLogger(__name__)

DESCRIPTION = "sam_state.json"
TENSORS = "sam_state.safetensors"
SHARDED = "sam_state"
SEPARATOR = "//"


def save_state(
    folder: str | Path,
    method: dict[str, Any],
    state: dict[str, StateValue],
    names: Sequence[str],
    params: Sequence[Tensor],
    engine: Engine,
    main: bool,
) -> None:
    """Write a method's description and state into a checkpoint folder.

    Args:
        folder: of the checkpoint.
        method: its description.
        state: what it carries.
        names: the parameters' names.
        params: the parameters.
        engine: says what of each this process holds.
        main: this process writes what all processes have alike.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    for key, value in state.items():
        if isinstance(value, Vector):
            for name, param, entry in zip(names, params, value, strict=True):
                if entry is not None:
                    tensors[f"{key}{SEPARATOR}{name}"] = _like(param, entry.contiguous(), engine)
        elif isinstance(value, Tensor):
            tensors[key] = value.contiguous()
        else:
            numbers[key] = value
    vectors = [key for key, value in state.items() if isinstance(value, Vector)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if tensors and engine.placement is not WHOLE:
        distributed_checkpoint().save(tensors, checkpoint_id=Path(folder) / SHARDED)
    elif tensors and main:
        with _whole_file(Path(folder) / TENSORS) as path:
            save_file(tensors, str(path))
    if main:  # last, so that a description never speaks of tensors that are not there
        text = json.dumps({"method": method, "numbers": numbers, "vectors": vectors}, indent=2)
        with _whole_file(Path(folder) / DESCRIPTION) as path:
            path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; the file gets its own name once it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    unfinished.replace(path)


def _like(param: Tensor, entry: Tensor, engine: Engine) -> Tensor:
    """Return a state's entry as the parameter is, but for one number that stands for all of it."""
    return engine.like(param, entry) if entry.ndim else entry


def distributed_checkpoint() -> Any:
    """Return torch's module, which takes a while to import."""
    import torch.distributed.checkpoint as module

    return module


def load_state(
    folder: str | Path,
    method: dict[str, Any],
    names: Sequence[str],
    params: Sequence[Tensor],
    engine: Engine,
    stateful: bool = True,
) -> dict[str, StateValue]:
    """Return the rows that this process holds of the state that `save_state` wrote.

    The tensors are on the parameters' devices. A checkpoint of another method, or without any
    state, gives an empty state: state starts at first use. One warning says so, unless nothing is
    lost.

    Args:
        folder: of the checkpoint.
        method: description of the method that goes on.
        names: the parameters' names.
        params: the parameters.
        engine: says which rows of each this process holds.
        stateful: whether the method that goes on keeps any state.

    Raises:
        ValueError: a file of the state is broken.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        if stateful:
            logger.warning(
                f"{folder} holds no state of a SAM method, as a checkpoint of another Trainer or "
                f"with save_only_model=True does not; {method['name']} starts here with fresh "
                "state."
            )
        return {}
    try:
        return _load(Path(folder), method, names, params, engine, stateful)
    except (json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"resume_from_checkpoint={folder}: the state of {method['name']} in it is broken "
            f"({type(error).__name__}: {error}); resume from an older checkpoint, or delete "
            f"{path} to start with fresh state"
        ) from error


def _load(
    folder: Path,
    method: dict[str, Any],
    names: Sequence[str],
    params: Sequence[Tensor],
    engine: Engine,
    stateful: bool,
) -> dict[str, StateValue]:
    saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if kind(saved["method"]) != kind(method):
        if stateful or saved["numbers"] or saved["vectors"]:
            logger.warning(
                f"{folder} was saved with {kind(saved['method'])}, and training goes on with "
                f"{kind(method)}: the saved method state is left aside."
            )
        return {}
    owners = dict(zip(names, params, strict=True))
    tensors = _read(folder, owners, engine)
    state: dict[str, StateValue] = dict(saved["numbers"])
    for key in saved["vectors"]:
        found = [tensors.pop(f"{key}{SEPARATOR}{name}", None) for name in names]
        entries = (
            None if t is None else t.to(p.device) for t, p in zip(found, params, strict=True)
        )
        state[key] = Vector(entries, engine.placement)
    device = params[0].device if params else torch.device("cpu")
    state.update((key, t.to(device)) for key, t in tensors.items() if SEPARATOR not in key)
    return state


def _read(folder: Path, owners: dict[str, Tensor], engine: Engine) -> dict[str, Tensor]:
    """Return what this process holds of the saved tensors, by their names."""

    def owner(key: str, size: torch.Size) -> Tensor | None:
        """Return the parameter whose shape a tensor has, None for a number."""
        param = owners.get(key.partition(SEPARATOR)[2])
        return param if param is not None and size == param.shape else None

    if (folder / SHARDED).is_dir():
        return _read_sharded(folder / SHARDED, owner, engine)
    if not (folder / TENSORS).is_file():
        return {}
    whole = load_file(str(folder / TENSORS))
    owned = {key: owner(key, tensor.shape) for key, tensor in whole.items()}
    return {k: t if (p := owned[k]) is None else engine.rows(p, t) for k, t in whole.items()}


def _read_sharded(
    folder: Path, owner: Callable[[str, torch.Size], Tensor | None], engine: Engine
) -> dict[str, Tensor]:
    """Return what this process holds of tensors that were saved by rows."""
    module = distributed_checkpoint()
    known = module.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {}
    for key, found in known.items():
        param, dtype = owner(key, found.size), found.properties.dtype
        if param is None:
            tensors[key] = torch.empty(found.size, dtype=dtype)
        else:
            held = torch.empty_like(engine.local(param.detach()), dtype=dtype)
            tensors[key] = engine.like(param, held)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads it
        module.load(tensors, checkpoint_id=folder)
    return {key: engine.local(tensor) for key, tensor in tensors.items()}


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
