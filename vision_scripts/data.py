# SPDX-License-Identifier: Apache-2.0
"""The data of a run: where the images of each stage come from, and whether they are sound."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_sam.parts.base import nearest
from shared_scripts.arguments import InputError
from vision_scripts.arguments import DataTrainingArguments
from vision_scripts.decode import Source

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

STAGES = ("train", "validation")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DRAWN = 0
"""Seed of subsets and of the held-out share: equal for all runs, so that they compare."""


@dataclass
class Part:
    """The examples of one stage, images not yet read.

    Attributes:
        images: encoded.
        labels: name or number of the class, as the source has it.
        names: of the classes in the order of their numbers, where the source says; labels are
            numbers then.
        source: folder, file or Hub path, as errors name it.
    """

    images: list[Source]
    labels: list[Any]
    names: tuple[str, ...] | None
    source: str

    def take(self, rows: Iterable[int]) -> Part:
        """Return some of the examples."""
        rows = list(rows)
        images, labels = [self.images[row] for row in rows], [self.labels[row] for row in rows]
        return replace(self, images=images, labels=labels)

    def some(self, limit: int | None) -> Part:
        """Return at most so many, the same ones each time."""
        if limit is None or limit >= len(self.labels):
            return self
        return self.take(_order(len(self.labels))[:limit])


def _order(count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(DRAWN)).tolist()


def load_parts(
    args: DataTrainingArguments,
    stages: Sequence[str],
    cache_dir: str | None = None,
    token: str | None = None,
) -> dict[str, Part]:
    """Find the examples that the stages need, and cut them to the numbers asked for.

    Args:
        args: where they come from, and how many are used.
        stages: any of "train", "validation".
        cache_dir: where prepared files are kept; default: the datasets library's cache.
        token: for the Hub.

    Raises:
        InputError: no source, an unreadable file, an empty folder, missing columns.
    """
    found = {stage: _find(args, stage, cache_dir, token) for stage in stages}
    if "validation" in found and found["validation"] is None:
        whole = found.get("train") or _find(args, "train", cache_dir, token)
        found["train"], found["validation"] = _hold_out(whole, args.train_val_split)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    parts = {stage: found[stage] for stage in stages}
    for stage, part in parts.items():
        if part is None:
            raise InputError(f"no {stage} data: give --{stage}_dir or --{stage}_file")
    return {stage: part.some(limits[stage]) for stage, part in parts.items() if part is not None}


def _find(
    args: DataTrainingArguments, stage: str, cache_dir: str | None, token: str | None
) -> Part | None:
    """Take a stage from its own folder or files, else from the Hub."""
    folder, files = getattr(args, f"{stage}_dir"), getattr(args, f"{stage}_file")
    if folder is not None:
        return _from_folder(Path(folder), f"--{stage}_dir")
    if files:
        return _join([_from_rows(_read_parquet(f, cache_dir), f, args) for f in files])
    local = args.train_dir is not None or args.train_file
    if args.dataset_name is None or (local and stage == "validation"):
        return None
    return _from_hub(args, stage, cache_dir, token)


def _hold_out(whole: Part | None, share: float) -> tuple[Part, Part]:
    if whole is None:
        raise InputError("no validation data: give --validation_dir or --validation_file")
    count = round(share * len(whole.labels))
    if not 0 < count < len(whole.labels):
        raise InputError(
            f"--train_val_split {share}: of {len(whole.labels)} images in {whole.source} that is "
            f"{count}; give --validation_dir or --validation_file, or another share"
        )
    logger.info("no validation data: %d of the training images are held out", count)
    order = _order(len(whole.labels))
    return whole.take(sorted(order[count:])), whole.take(sorted(order[:count]))


def _from_folder(folder: Path, argument: str) -> Part:
    """Read a folder with one folder of images per class."""
    if not folder.is_dir():
        raise InputError(f"{argument} {folder}: there is no such folder")
    names = tuple(sorted(path.name for path in _seen(folder, "*") if path.is_dir()))
    if not names:
        raise InputError(f"{argument} {folder}: has no folders; it needs one per class")
    images, labels = [], []
    others = [path for path in _seen(folder, "*") if path.is_file()]
    for label, name in enumerate(names):
        files = sorted(path for path in _seen(folder / name, "**/*") if path.is_file())
        found = [path for path in files if path.suffix.lower() in SUFFIXES]
        if not found:
            raise InputError(
                f"{argument} {folder}: the folder {name!r} has no image ({', '.join(SUFFIXES)})"
            )
        images += [Source(str(path), path.read_bytes) for path in found]
        labels += [label] * len(found)
        others += [path for path in files if path.suffix.lower() not in SUFFIXES]
    if others:
        logger.warning(
            "%s %s: %d files are left out, such as %s: in no class's folder, or no images (%s)",
            *(argument, folder, len(others), others[0], ", ".join(SUFFIXES)),
        )
    return Part(images, labels, names, str(folder))


def _seen(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield what is not hidden: file managers and notebooks leave files of their own."""
    for path in folder.glob(pattern):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _read_parquet(path: str, cache_dir: str | None) -> Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if Path(path).suffix.lower() != ".parquet":
        raise InputError(f"{path}: is no .parquet file; for image files give --train_dir DIR")
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return load_dataset("parquet", data_files=path, split="train", cache_dir=cache_dir)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise InputError(f"{path}: has no rows") from error
        reason = error.__cause__ or error
        raise InputError(f"{path}: cannot be read as parquet: {reason}") from error


def _join(parts: list[Part]) -> Part:
    """Return the examples of several files as one part."""
    first = parts[0]
    for part in parts:
        if part.names != first.names:
            raise InputError(f"{part.source}: its classes are not those of {first.source}")
    images = [image for part in parts for image in part.images]
    labels = [label for part in parts for label in part.labels]
    return Part(images, labels, first.names, ", ".join(part.source for part in parts))


def _from_hub(
    args: DataTrainingArguments, stage: str, cache_dir: str | None, token: str | None
) -> Part | None:
    from datasets import load_dataset

    path = str(args.dataset_name)
    try:
        splits = load_dataset(path, args.dataset_config_name, cache_dir=cache_dir, token=token)
    except Exception as error:  # the libraries below have many names for no connection
        raise InputError(
            f"cannot get {path} from the Hub: {error}; give --train_dir and --validation_dir (a "
            "folder per class), or --train_file and --validation_file (.parquet)"
        ) from error
    name = "train" if stage == "train" else args.validation_split_name
    if name not in splits:
        if stage == "train" or name != "validation":
            raise InputError(f"{path}: has no split {name!r}, only {', '.join(splits)}")
        return None
    return _from_rows(splits[name], f"{path} ({name})", args)


def _from_rows(data: Dataset, source: str, args: DataTrainingArguments) -> Part:
    """Take images and labels out of a table."""
    from datasets import Image

    if len(data) == 0:
        raise InputError(f"{source}: has no rows")
    image = _column(data, args.image_column_name, IMAGE_COLUMNS, "image", source)
    label = _column(data, args.label_column_name, LABEL_COLUMNS, "label", source)
    if isinstance(data.features[image], Image):
        data = data.cast_column(image, Image(decode=False))
    for row, value in enumerate(labels := data[label][:]):
        if not isinstance(value, str | int | None):
            raise InputError(
                f"{source}, row {row + 1}: column {label!r} holds {value!r:.60}; a class is a name "
                "or a whole number"
            )
    names = getattr(data.features[label], "names", None)
    images = [
        Source(f"{source}, row {r + 1}", partial(_bytes, data, image, r)) for r in range(len(data))
    ]
    return Part(images, labels, tuple(names) if names else None, source)


def _bytes(data: Dataset, column: str, row: int) -> bytes:
    """Return the encoded image of a row, given as bytes or as a path."""
    value = data[row][column]
    content, path = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(content, bytes):
        return content
    if isinstance(path, str):
        return Path(path).read_bytes()
    raise ValueError(f"column {column!r} holds {value!r:.60}")


def _column(
    data: Dataset, given: str | None, usual: tuple[str, ...], what: str, source: str
) -> str:
    wanted = (given,) if given else usual
    for name in wanted:
        if name in data.column_names:
            return name
    raise InputError(
        f"{source}: has no column {' or '.join(map(repr, wanted))}"
        f"{nearest(wanted[0], data.column_names)}. There: {', '.join(data.column_names)}. Give "
        f"--{what}_column_name"
    )


def class_names(parts: dict[str, Part], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes in the order of the model's head.

    Args:
        parts: of all stages.
        known: the classes that a checkpoint was trained on; empty for a new head.

    Raises:
        InputError: there is only one class, or a validation class that training lacks.
    """
    if "train" not in parts:
        return known or _names(parts["validation"])
    train = parts["train"]
    present = {_name(train, label) for label in train.labels}
    if len(present) < 2:
        raise InputError(
            f"{train.source}: a classifier needs two classes; all labels are {', '.join(present)}"
        )
    for image, label in _examples(parts.get("validation")):
        if label not in present:
            raise InputError(
                f"{image.name}: no training image has the class {label!r}; there are "
                f"{_listed(sorted(present))}"
            )
    names = _names(train)
    return known if sorted(known) == sorted(names) else names


def _examples(part: Part | None) -> Iterator[tuple[Source, str]]:
    if part is not None:
        names = [_name(part, label) for label in part.labels]
        yield from zip(part.images, names, strict=True)


def _names(part: Part) -> tuple[str, ...]:
    if part.names is not None:
        return part.names
    found = {label for label in part.labels if label is not None}
    found -= {label for label in found if isinstance(label, int) and label < 0}
    in_order: list[Any] = sorted(found, key=lambda label: (isinstance(label, str), label))
    return tuple(str(label) for label in in_order)


def _name(part: Part, label: Any) -> str:
    """Return the name of a label, or what it says if it has none."""
    if part.names is not None and isinstance(label, int) and 0 <= label < len(part.names):
        return part.names[label]
    return str(label)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def encode_labels(part: Part, names: tuple[str, ...]) -> torch.Tensor:
    """Return the number of each example's class, `(N,)`.

    Raises:
        InputError: a label that is no class, with its row.
    """
    numbers = {name: number for number, name in enumerate(names)}
    limit = math.inf if part.names is None else len(part.names)
    found = []
    for image, label in zip(part.images, part.labels, strict=True):
        number = numbers.get(_name(part, label))
        in_range = not isinstance(label, int) or 0 <= label < limit
        if label is None or number is None or not in_range:
            raise InputError(
                f"{image.name}: label {label!r} is outside the {len(names)} classes: "
                f"{_listed(names)}"
            )
        found.append(number)
    return torch.tensor(found)
