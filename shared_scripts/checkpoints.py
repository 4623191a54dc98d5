# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from: the newest one that is whole."""

from __future__ import annotations

import json
import logging
import os
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from shared_scripts.errors import InputError

if TYPE_CHECKING:
    from hf_sam import SAMTrainingArguments

logger = logging.getLogger(__name__)

STATE, METHOD = "trainer_state.json", "sam_state.json"
WEIGHTS = ("*.safetensors", "*.bin", "global_step*", "pytorch_model_fsdp*", "*.distcp")
TORCH_FILES = (".bin", ".pt", ".pth")


def checkpoint(args: SAMTrainingArguments) -> str | None:
    """Return the checkpoint to resume from; refuse to train over one that is not resumed.

    Raises:
        InputError: there is a checkpoint that is not asked for, or no whole one where one is.
    """
    found = in_folder(Path(str(args.output_dir)))
    wanted = str(args.resume_from_checkpoint or "no")
    if wanted.lower() in ("no", "false"):
        if args.do_train and found:
            raise InputError(
                f"--output_dir {args.output_dir} holds a checkpoint ({found[0].name}): go on "
                f"from it with --resume_from_checkpoint {found[0]}, or give another --output_dir"
            )
        return None
    if wanted.lower() in ("yes", "true"):
        return str(_newest_whole(found, wanted, args.output_dir))
    return str(_named(Path(wanted), found, args.output_dir))


def in_folder(folder: Path) -> list[Path]:
    """Return the folders `checkpoint-N` of an output folder, the newest first."""
    numbered = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def _newest_whole(found: list[Path], wanted: str, folder: str | None) -> Path:
    for path in found:
        fault = broken(path)
        if fault is None:
            return path
        logger.warning("%s is broken (%s): looking for an older checkpoint", path, fault)
    state = "every checkpoint in it is broken" if found else "it holds none"
    raise InputError(
        f"--resume_from_checkpoint {wanted}: there is no such checkpoint in --output_dir {folder}: "
        f"{state}; begin anew with another --output_dir"
    )


def _named(path: Path, found: list[Path], folder: str | None) -> Path:
    names = ", ".join(one.name for one in found) or "none"
    holds = f"--output_dir {folder} holds {names}"
    if not path.is_dir():
        raise InputError(f"--resume_from_checkpoint {path}: there is no such checkpoint ({holds})")
    fault = broken(path)
    if fault is not None:
        raise InputError(
            f"--resume_from_checkpoint {path}: it is broken ({fault}); give an older one ({holds}) "
            "or `true`, for the newest that is whole"
        )
    return path


def broken(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all of its files are whole.

    Only beginnings and ends of files are read, so that this is quick for weights of any size.
    """
    if not (folder / STATE).is_file():
        return f"{STATE}, which is written last, is missing"
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        return "its weights are missing"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _is_whole(path):
            return f"{path.relative_to(folder)} is cut short or damaged"
    if (folder / "scheduler.pt").is_file() and _lacks_optimizer(folder):
        return "optimizer.pt is missing"
    return _missing_shard(folder) or _missing_process(folder)


def _lacks_optimizer(folder: Path) -> bool:
    """Say whether the optimizer's state is gone; sharded engines keep it in folders."""
    return not (folder / "optimizer.pt").is_file() and not any(p.is_dir() for p in folder.iterdir())


def _is_whole(path: Path) -> bool:
    if path.suffix == ".json":
        return _is_json(path)
    if path.suffix == ".safetensors":
        return _is_safetensors(path)
    return path.suffix not in TORCH_FILES or zipfile.is_zipfile(path)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _is_safetensors(path: Path) -> bool:
    """Compare the file's size with the one that its header promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return False
        (length,) = struct.unpack("<Q", start)
        if length + 8 > size:
            return False
        try:
            entries = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def _missing_shard(folder: Path) -> str | None:
    for index in folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        for name in sorted(names):
            if not (folder / name).is_file():
                return f"{name}, which {index.name} names, is missing"
    return None


def _missing_process(folder: Path) -> str | None:
    """Look for the random state of each process of this machine, which it writes by itself.

    The other processes may have written all that is theirs when one of them ends.
    """
    # One process numbers nothing, and the first one may have saved on another machine's disk.
    if not (folder / "rng_state_0.pth").is_file():
        return None
    saved, here = 2, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if (folder / METHOD).is_file():
        saved = json.loads((folder / METHOD).read_text(encoding="utf-8"))["about"]["processes"]
    # Other processes than those that saved begin with random states of their own.
    for n in range(min(saved, here)):
        if not (folder / f"rng_state_{n}.pth").is_file():
            return f"rng_state_{n}.pth is missing: its process ended while it saved"
    return None
