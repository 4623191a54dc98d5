# SPDX-License-Identifier: Apache-2.0
"""Tables of images and labels: parquet files, and datasets of the Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_sam.parts.base import nearest
from shared_scripts.arguments import InputError
from vision_scripts.arguments import DataTrainingArguments
from vision_scripts.folders import listed
from vision_scripts.part import Part, Source, reading, shown

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")


def from_files(files: list[str], args: DataTrainingArguments, cache_dir: str | None) -> Part:
    """Read parquet files, one after the other.

    Raises:
        InputError: one cannot be read, lacks a column, or has other classes than the first.
    """
    parts = [
        _from_rows(_read_parquet(file, cache_dir), file, args, Path(file).parent) for file in files
    ]
    first = parts[0]
    for part in parts:
        if part.names != first.names:
            raise InputError(
                f"{part.source}: its classes are not those of {first.source}: "
                f"{listed(part.classes)} instead of {listed(first.classes)}"
            )
    images = [image for part in parts for image in part.images]
    labels = [label for part in parts for label in part.labels]
    return Part(images, labels, first.names, ", ".join(part.source for part in parts))


def _read_parquet(path: str, cache_dir: str | None) -> Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if Path(path).suffix.lower() != ".parquet":
        raise InputError(f"{path}: is no .parquet file; for image files give --train_dir DIR")
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    with reading(path, "parquet"):
        _check_rows(path)
        try:
            return load_dataset("parquet", data_files=path, split="train", cache_dir=cache_dir)
        except DatasetGenerationError as error:  # says nothing itself
            raise error.__cause__ or error from None


def _check_rows(path: str) -> None:
    """Ask the file itself: the datasets library refuses one without rows by another name."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            raise InputError(f"{path}: has no rows")


def from_hub(
    args: DataTrainingArguments, stage: str, cache_dir: str | None, token: str | None
) -> Part | None:
    """Read a split of a dataset of the Hub; None if it has none for the validation.

    Raises:
        InputError: there is no such dataset or split, or it cannot be had.
    """
    from datasets import config, load_dataset

    path = str(args.dataset_name)
    try:
        splits = load_dataset(path, args.dataset_config_name, cache_dir=cache_dir, token=token)
    except Exception as error:  # the libraries below have many names for no connection
        raise InputError(
            f"cannot get {path} from the Hub: {' '.join(str(error).split())}; give --train_dir and "
            "--validation_dir (a folder per class), or --train_file and --validation_file "
            "(.parquet)"
        ) from error
    name = "train" if stage == "train" else args.validation_split_name
    if name not in splits:
        if stage == "train" or name != "validation":
            raise InputError(f"{path}: has no split {name!r}, only {', '.join(splits)}")
        return None
    # What the library fetched lies in its cache; images of a folder lie there.
    folder = path if Path(path).is_dir() else cache_dir or config.HF_CACHE_HOME
    return _from_rows(splits[name], f"{path} ({name})", args, Path(folder))


def _from_rows(data: Dataset, source: str, args: DataTrainingArguments, folder: Path) -> Part:
    """Take images and labels out of a table; paths in it are of files in `folder`."""
    from datasets import Image

    if len(data) == 0:
        raise InputError(f"{source}: has no rows")
    image = _column(data, args.image_column_name, IMAGE_COLUMNS, "image", source)
    label = _column(data, args.label_column_name, LABEL_COLUMNS, "label", source)
    with reading(source, "a table"):
        labels, names = data[label][:], getattr(data.features[label], "names", None)
        pictures = data.select_columns([image])  # other columns may be broken, or large
        if isinstance(data.features[image], Image):
            pictures = pictures.cast_column(image, Image(decode=False))
    _check_labels(labels, label, source)
    images = [
        Source(f"{source}, row {row + 1}", partial(_bytes, pictures, image, row, folder))
        for row in range(len(data))
    ]
    return Part(images, labels, tuple(names) if names else None, source)


def _check_labels(labels: list[Any], column: str, source: str) -> None:
    for row, value in enumerate(labels):
        if not isinstance(value, str | int | None):
            raise InputError(
                f"{source}, row {row + 1}: column {column!r} holds {value!r:.60}; a class is a "
                "name or a whole number"
            )


def _bytes(data: Dataset, column: str, row: int, folder: Path) -> bytes:
    """Return the encoded image of a row, given as bytes or as a path."""
    value = data[row][column]
    content, path = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(content, bytes):
        return content
    if isinstance(path, str):
        return _beside(path, folder).read_bytes()
    raise ValueError(f"column {column!r} holds {value!r:.60}")


def _beside(path: str, folder: Path) -> Path:
    """Return the file that a table names; a table may name files of its own folder only.

    Raises:
        ValueError: the path leads elsewhere, also through a link.
    """
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(
            f"it names {shown(path)}, which is not in the table's folder {shown(folder)}: move the "
            "table to a folder that has the images"
        )
    return file


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
