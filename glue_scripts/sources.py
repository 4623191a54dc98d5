# SPDX-License-Identifier: Apache-2.0
"""Where each split comes from: a file, a folder of a task, or the Hub."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_scripts.arguments import DataTrainingArguments
from glue_scripts.tasks import KNOWN
from glue_scripts.text_files import check_text, check_unpacked
from hf_sam.parts.base import nearest
from shared_scripts.errors import InputError, one_line, shown

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

GLUE = "nyu-mll/glue"
STAGES = ("train", "validation", "test")
FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
THREE_WAYS = (
    "there are three ways: a connection to the Hub (or a copy in its cache), "
    "--data_dir DIR with DIR/<task>/<split>.parquet, or --train_file, --validation_file and "
    "--test_file (.csv, .tsv, .json, .jsonl, .parquet)"
)


@dataclass
class Part:
    """One data set and where it came from.

    Attributes:
        data: the rows.
        source: file or Hub path, as errors name it.
    """

    data: Dataset
    source: str

    def values(self, column: str) -> list[Any]:
        """Return a column as Python objects.

        Raises:
            InputError: a row of it cannot be decoded.
        """
        try:
            return list(self.data[column])
        except Exception as error:  # foreign bytes: anything can be raised while they are decoded
            row, reason = self._first_bad_row(column, error)
            raise InputError(
                f"{self.source}: row {row}, column {column!r}: cannot be read: {one_line(reason)}; "
                "mend or remove this row, and save the file as UTF-8"
            ) from error

    def _first_bad_row(self, column: str, error: Exception) -> tuple[int | str, Exception]:
        for row in range(len(self.data)):
            try:
                self.data[row][column]
            except Exception as found:  # the same, row by row
                return row + 1, found
        return "unknown", error


class Reader:
    """Finds the splits of a run and reads each source once.

    Args:
        args: where the data comes from.
        cache_dir: where prepared files are kept; default: the datasets library's cache.
        token: for the Hub.
    """

    def __init__(
        self, args: DataTrainingArguments, cache_dir: str | None = None, token: str | None = None
    ) -> None:
        """Read nothing yet."""
        self.args = args
        task = KNOWN.get(args.task_name or "")
        keys = args.text_column_names or (task.keys if task is not None else ())
        label = args.label_column_name
        self.file = cache(partial(_read_file, keys=tuple(keys), label=label, cache_dir=cache_dir))
        self.hub = cache(partial(_load_hub, args, cache_dir, token))

    def find(self, stage: str) -> dict[str, Part]:
        """Return the parts of a stage by name: its own file, else --data_dir, else the Hub.

        Raises:
            InputError: there is no such data.
        """
        args = self.args
        own_file = getattr(args, f"{stage}_file")
        splits = _split_names(args.task_name, stage)
        if own_file is not None:
            if len(splits) > 1:
                logger.warning("--%s_file replaces both of MNLI's %s sets", stage, stage)
            return {next(iter(splits)): self.file(own_file)}
        if args.data_dir is not None:
            folder = _task_folder(args)
            files = {name: folder / f"{split}.parquet" for name, split in splits.items()}
            found = {name: self.file(str(path)) for name, path in files.items() if path.is_file()}
            where = {name: str(path) for name, path in files.items()}
        elif args.task_name is None and args.dataset_name is None:
            raise InputError(f"--{stage}_file is missing: this run needs {stage} data")
        else:
            available = self.hub()
            found = {name: available[split] for name, split in splits.items() if split in available}
            where = {name: f"split {split!r} on the Hub" for name, split in splits.items()}
        return _say_missing(found, where, stage)


def evaluation_name(task_name: str | None) -> str:
    """Return the name of a task's evaluation, the first one if there are several."""
    return next(iter(_split_names(task_name, "validation")))


def _split_names(task_name: str | None, stage: str) -> dict[str, str]:
    """Map the name of each evaluation to the split that it uses."""
    if stage == "train":
        return {stage: stage}
    if task_name == "mnli":
        return {"mnli": f"{stage}_matched", "mnli-mm": f"{stage}_mismatched"}
    return {task_name or "custom": stage}


def _say_missing(found: dict[str, Part], where: dict[str, str], stage: str) -> dict[str, Part]:
    missing = [where[name] for name in where if name not in found]
    if not found:
        raise InputError(
            f"no {stage} data (not found: {', '.join(missing)}): "
            f"give --{stage}_file, or leave this stage out"
        )
    for place in missing:
        logger.warning("%s does not exist: the task is not evaluated on it", place)
    return found


def _task_folder(args: DataTrainingArguments) -> Path:
    root = Path(args.data_dir or "")
    folder = root / str(args.task_name)
    if not root.is_dir():
        raise InputError(f"--data_dir {root}: there is no such folder; {THREE_WAYS}")
    if not folder.is_dir():
        has = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise InputError(
            f"--data_dir {root}: has no folder {args.task_name!r} for --task_name "
            f"{args.task_name} (it has: {', '.join(has) or 'nothing'}); {THREE_WAYS}"
        )
    return folder


def _load_hub(
    args: DataTrainingArguments, cache_dir: str | None, token: str | None
) -> dict[str, Part]:
    from datasets import load_dataset

    path = args.dataset_name or GLUE
    config_name = args.task_name or args.dataset_config_name
    try:
        splits = load_dataset(path, config_name, cache_dir=cache_dir, token=token)
    except Exception as error:  # the libraries below have many names for no connection
        raise InputError(
            f"cannot get {path} ({config_name}) from the Hub: {error}; {THREE_WAYS}"
        ) from error
    parts = {name: Part(split, f"{path} ({name})") for name, split in splits.items()}
    return {name: _rename_label(part, args.label_column_name) for name, part in parts.items()}


def _read_file(path: str, keys: Sequence[str], label: str, cache_dir: str | None) -> Part:
    """Read one local file; `keys` are columns whose texts may look like numbers."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: cannot read {suffix!r}; the formats are {', '.join(FORMATS)}")
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    check_unpacked(Path(path))
    if suffix != ".parquet":
        check_text(Path(path), nested=FORMATS[suffix] == "json")
    options = _csv_options(suffix, keys, label) if FORMATS[suffix] == "csv" else {}
    try:
        data = load_dataset(
            FORMATS[suffix], data_files=path, split="train", cache_dir=cache_dir, **options
        )
    except Exception as error:  # foreign bytes: anything can be raised while they are read
        if "corresponds to no data" in str(error):
            raise InputError(f"{path}: has no rows") from error
        known = isinstance(error, DatasetGenerationError) and error.__cause__ is not None
        reason = one_line(error.__cause__ if known and error.__cause__ else error)
        raise InputError(f"{path}: cannot be read as {FORMATS[suffix]}: {reason}") from error
    if len(data) == 0:
        raise InputError(f"{path}: has no rows")
    return _rename_label(Part(data, path), label)


def _csv_options(suffix: str, keys: Sequence[str], label: str) -> dict[str, Any]:
    """Pandas options under which "null" is a word, "42" a text, and no label is none."""
    options: dict[str, Any] = {"keep_default_na": False, "na_values": {label: [""]}}
    if keys:
        options["converters"] = dict.fromkeys(keys, str)
    if suffix == ".tsv":  # GLUE's own files have lone quotation marks
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    return options


def _rename_label(part: Part, name: str) -> Part:
    """Call the column with the labels `label`, whatever its name is in the source."""
    columns = part.data.column_names
    if name == "label" or name not in columns:
        if name != "label" and columns:
            logger.warning(
                "%s: has no column %s%s", part.source, shown(name), nearest(name, columns)
            )
        return part
    data = part.data.remove_columns("label") if "label" in columns else part.data
    return replace(part, data=data.rename_column(name, "label"))
