# SPDX-License-Identifier: Apache-2.0
"""Method state in a checkpoint folder.

The folder gets a description of the method, and one tensor per state entry and parameter. If the
parameters are sharded, each process writes its rows with torch's distributed checkpoint. Any number
of processes can read either form. All files are JSON and safetensors, which run no code when they
are read.
"""

from __future__ import annotations

import json
import logging
import shutil
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
from .changes import about, changes, kind

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
        folder: the checkpoint's folder.
        method: the method's description.
        state: the method's state.
        names: the parameters' names.
        params: the parameters.
        engine: the engine, which knows the rows that this process holds.
        main: whether this process writes what all processes have alike.
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
    if main:
        _clear(Path(folder))
    if tensors and engine.placement is not WHOLE:
        _save_sharded(Path(folder) / SHARDED, tensors)
    elif tensors and main:
        with _whole_file(Path(folder) / TENSORS) as path:
            save_file(tensors, str(path))
    if main:  # last, so that a description never names tensors that do not exist
        said: dict[str, Any] = {"method": method, "about": about()}
        said |= {"numbers": numbers, "vectors": vectors, "tensors": len(tensors)}
        text = json.dumps(said, indent=2)
        with _whole_file(Path(folder) / DESCRIPTION) as path:
            path.write_text(text + "\n", encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove what an earlier save into this folder left, the description first.

    A run that was stopped in a save and goes on with fewer processes, or without sharding, would
    otherwise leave files of both.
    """
    for name in (DESCRIPTION, TENSORS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / SHARDED, ignore_errors=True)


def _save_sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the rows that this process holds."""
    torch.distributed.barrier()  # until the main process has cleared the folder
    writer = hugging_face_storage().HuggingFaceStorageWriter(str(folder), save_distributed=True)
    distributed_checkpoint().save(tensors, storage_writer=writer)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename the file when it is complete."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)  # on a full disk it would take up space that is needed


def _like(param: Tensor, entry: Tensor, engine: Engine) -> Tensor:
    """Return an entry of the state in the form of its parameter, sharded as that one is."""
    # A `()` entry is one number for the whole parameter, such as a mask of whole tensors.
    return engine.like(param, entry) if entry.ndim else entry


def distributed_checkpoint() -> Any:
    """Return torch's module for distributed checkpoints, which takes a while to import."""
    import torch.distributed.checkpoint as module

    return module


def hugging_face_storage() -> Any:
    """Return torch's module that keeps distributed checkpoints as safetensors.

    Torch's own form describes the tensors in a pickle, which can run code.
    """
    import torch.distributed.checkpoint.hf_storage as module

    return module


def load_state(
    folder: str | Path,
    method: dict[str, Any],
    names: Sequence[str],
    params: Sequence[Tensor],
    engine: Engine,
    stateful: bool = True,
    warn: Callable[[str], None] = logger.warning,
) -> dict[str, StateValue]:
    """Return the rows that this process holds of the state that `save_state` wrote.

    The tensors are on the parameters' devices. A checkpoint of another method, or one without any
    state, gives an empty state, so that the method starts afresh. A warning is logged unless
    nothing is lost.

    Args:
        folder: the checkpoint's folder.
        method: the description of the method that continues.
        names: the parameters' names.
        params: the parameters.
        engine: the engine, which knows the rows that this process holds.
        stateful: whether the method that continues keeps any state.
        warn: a function that logs a warning, if not every process should.

    Raises:
        ValueError: a file of the state is broken.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        if stateful:
            warn(
                f"{folder} holds no state of a SAM method, as a checkpoint of another Trainer or "
                f"with save_only_model=True does not; {method['name']} starts here with fresh "
                "state."
            )
        return {}
    try:
        return _load(Path(folder), method, names, params, engine, stateful, warn)
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
    warn: Callable[[str], None],
) -> dict[str, StateValue]:
    saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if kind(saved["method"]) != kind(method):
        if stateful or saved["numbers"] or saved["vectors"]:
            warn(
                f"{folder} was saved with {kind(saved['method'])}, and training goes on with "
                f"{kind(method)}: the saved method state is ignored."
            )
        return {}
    changed = changes(saved["about"], saved["method"], method)
    if stateful and changed:
        warn(
            f"{folder} was saved with {changed[0]}, and training goes on with {changed[1]}: the "
            f"state of {method['name']} is kept."
        )
    owners = dict(zip(names, params, strict=True))
    tensors = _read(folder, owners, engine)
    if len(tensors) != saved["tensors"]:
        raise KeyError(f"{len(tensors)} of {saved['tensors']} tensors")
    state: dict[str, StateValue] = dict(saved["numbers"])
    for key in saved["vectors"]:
        saved_entries = [tensors.pop(f"{key}{SEPARATOR}{name}", None) for name in names]
        # Copied, because tensors of a file may lie in memory otherwise than others, and then the
        # products of matrices are rounded otherwise.
        entries = (
            None if t is None else t.to(p.device, copy=True)
            for t, p in zip(saved_entries, params, strict=True)
        )
        state[key] = Vector(entries, engine.placement)
    device = params[0].device if params else torch.device("cpu")
    state.update((key, t.to(device)) for key, t in tensors.items() if SEPARATOR not in key)
    return state


def _read(folder: Path, owners: dict[str, Tensor], engine: Engine) -> dict[str, Tensor]:
    """Return the rows of the saved tensors that this process holds, by name."""

    def owner(key: str, size: torch.Size) -> Tensor | None:
        """Return the parameter that a tensor belongs to, or None if its shape differs."""
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
    """Return the rows that this process holds of tensors that were saved by rows."""
    reader = hugging_face_storage().HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    tensors = {}
    # Torch loads into tensors that exist, whose sharding says which rows to read.
    for key, saved in known.items():
        param, dtype = owner(key, saved.size), saved.properties.dtype
        if param is None:
            tensors[key] = torch.empty(saved.size, dtype=dtype)
        else:
            held = torch.empty_like(engine.local(param.detach()), dtype=dtype)
            tensors[key] = engine.like(param, held)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads it
        distributed_checkpoint().load(tensors, storage_reader=reader)
    return {key: engine.local(tensor) for key, tensor in tensors.items()}
