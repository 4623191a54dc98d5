# SPDX-License-Identifier: Apache-2.0
"""The data of a run: where the images of each stage come from, and which of them are used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from shared_scripts.arguments import InputError
from shared_scripts.hold_out import hold_out, shuffled
from vision_scripts import tables
from vision_scripts.arguments import DataTrainingArguments
from vision_scripts.folders import from_folder
from vision_scripts.part import Part

logger = logging.getLogger(__name__)

STAGES = ("train", "validation")
HELD_OUT = 0.15
"""The share of the training images to evaluate on, if there is nothing else."""
DRAWN = 0
"""Seed of the subsets: equal for all runs, so that they compare."""


def load_parts(
    args: DataTrainingArguments,
    stages: Sequence[str],
    cache_dir: str | None = None,
    token: str | None = None,
    seed: int = DRAWN,
) -> dict[str, Part]:
    """Find the examples that the stages need, and cut them to the numbers asked for.

    Args:
        args: where they come from, and how many are used.
        stages: any of "train", "validation".
        cache_dir: where prepared files are kept; default: the datasets library's cache.
        token: for the Hub.
        seed: of the share that is held out of the training images.

    Raises:
        InputError: no source, an unreadable file, an empty folder, missing columns.
    """
    share = args.train_val_split
    read = [stage for stage in stages if stage == "train" or share is None]
    found = {stage: _find(args, stage, cache_dir, token) for stage in read}
    if share is not None or ("validation" in found and found["validation"] is None):
        whole = found.get("train") or _find(args, "train", cache_dir, token)
        found["train"], found["validation"] = _held_out(whole, share or HELD_OUT, seed)
    parts = {}
    for stage in stages:
        part = found[stage]
        if part is None:
            raise InputError(f"no {stage} data: give --{stage}_dir or --{stage}_file")
        limit = args.max_train_samples if stage == "train" else args.max_eval_samples
        parts[stage] = _some(part, limit)
    return parts


def _find(
    args: DataTrainingArguments, stage: str, cache_dir: str | None, token: str | None
) -> Part | None:
    """Take a stage from its own folder or files, else from the Hub."""
    folder, files = getattr(args, f"{stage}_dir"), getattr(args, f"{stage}_file")
    if folder is not None:
        return from_folder(Path(folder), f"--{stage}_dir")
    if files:
        return tables.from_files(files, args, cache_dir)
    local = args.train_dir is not None or args.train_file
    if args.dataset_name is None or (local and stage == "validation"):
        return None
    return tables.from_hub(args, stage, cache_dir, token)


def _held_out(whole: Part | None, share: float, seed: int) -> tuple[Part, Part]:
    """Return the examples to train on, at least one of each class, and those held out."""
    if whole is None:
        raise InputError("no validation data: give --validation_dir or --validation_file")
    classes = [whole.name(label) for label in whole.labels]
    kept, held = hold_out(classes, share, seed, whole.source)
    logger.warning(
        "%d of the %d training images are held out to evaluate on, as --train_val_split %s and "
        "seed %d say; only with both are they the same ones again",
        *(len(held), len(classes), share, seed),
    )
    return whole.take(kept), whole.take(held)


def _some(part: Part, limit: int | None) -> Part:
    """Return at most so many of the examples, the same ones each time."""
    if limit is None or limit >= len(part.labels):
        return part
    return part.take(shuffled(len(part.labels), DRAWN)[:limit])
