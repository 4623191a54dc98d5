# SPDX-License-Identifier: Apache-2.0
"""The data of a run: where each split comes from, whether it is sound, and its tokens."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_scripts.arguments import TASKS, DataTrainingArguments, InputError, Task
from hf_sam.parts.base import nearest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

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
UNLABELLED = -1  # GLUE's own mark in the test sets whose labels are secret
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


@dataclass
class GlueData:
    """Everything that a run trains and evaluates on.

    Attributes:
        task: the task, read off the files if none was named.
        parts: stage ("train", "validation", "test") -> name ("train", "mrpc", "mnli", "mnli-mm")
            -> rows.
    """

    task: Task
    parts: dict[str, dict[str, Part]]


def load_data(
    args: DataTrainingArguments,
    stages: Iterable[str],
    config: PretrainedConfig,
    cache_dir: str | None = None,
    token: str | None = None,
) -> GlueData:
    """Find, read, check and cut the splits that the stages need.

    Args:
        args: where the data comes from, and how much of it is used.
        stages: any of "train", "validation", "test".
        config: the model's, for the label names of a task that is not GLUE's.
        cache_dir: where prepared files are kept; default: the datasets library's cache.
        token: for the Hub.

    Raises:
        InputError: no source, an unreadable file, missing columns, labels outside the range.
    """
    read = partial(_read_file, task=TASKS.get(args.task_name or ""), cache_dir=cache_dir)
    hub = cache(partial(_load_hub, args, cache_dir, token))
    found = {stage: _find(args, stage, read, hub) for stage in stages}
    task = TASKS.get(args.task_name or "") or _infer_task(args, found, read, config)
    limits = {
        "train": args.max_train_samples,
        "validation": args.max_eval_samples,
        "test": args.max_predict_samples,
    }
    checked = {
        stage: {
            name: _check(_first(part, limits[stage]), task, stage) for name, part in parts.items()
        }
        for stage, parts in found.items()
    }
    return GlueData(task, checked)


def _split_names(task_name: str | None, stage: str) -> dict[str, str]:
    """Map the name of each evaluation to the split that it uses."""
    if stage == "train":
        return {stage: stage}
    if task_name == "mnli":
        return {"mnli": f"{stage}_matched", "mnli-mm": f"{stage}_mismatched"}
    return {task_name or "custom": stage}


def _find(
    args: DataTrainingArguments,
    stage: str,
    read: Callable[[str], Part],
    hub: Callable[[], dict[str, Part]],
) -> dict[str, Part]:
    """Take a stage from its own file, else from --data_dir, else from the Hub."""
    own_file = getattr(args, f"{stage}_file")
    splits = _split_names(args.task_name, stage)
    if own_file is not None:
        if len(splits) > 1:
            logger.warning("--%s_file replaces both of MNLI's %s sets", stage, stage)
        return {next(iter(splits)): read(own_file)}
    if args.data_dir is not None:
        folder = _task_folder(args)
        files = {name: folder / f"{split}.parquet" for name, split in splits.items()}
        found = {name: read(str(path)) for name, path in files.items() if path.is_file()}
        where = {name: str(path) for name, path in files.items()}
    elif args.task_name is None and args.dataset_name is None:
        raise InputError(f"--{stage}_file is missing: this run needs {stage} data")
    else:
        available = hub()
        found = {name: available[split] for name, split in splits.items() if split in available}
        where = {name: f"split {split!r} on the Hub" for name, split in splits.items()}
    return _say_missing(found, where, stage)


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
    return {name: Part(split, f"{path} ({name})") for name, split in splits.items()}


def _read_file(path: str, task: Task | None, cache_dir: str | None) -> Part:
    """Read one local file; `task` keeps texts that look like numbers as they are."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: cannot read {suffix!r}; the formats are {', '.join(FORMATS)}")
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    options = _csv_options(suffix, task) if FORMATS[suffix] == "csv" else {}
    try:
        data = load_dataset(
            FORMATS[suffix], data_files=path, split="train", cache_dir=cache_dir, **options
        )
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise InputError(f"{path}: has no rows") from error
        reason = error.__cause__ or error
        raise InputError(f"{path}: cannot be read as {FORMATS[suffix]}: {reason}") from error
    if len(data) == 0:
        raise InputError(f"{path}: has no rows")
    return Part(data, path)


def _csv_options(suffix: str, task: Task | None) -> dict[str, Any]:
    """Pandas options under which "null" is a word, "42" a text, and no label is none."""
    options: dict[str, Any] = {"keep_default_na": False, "na_values": {"label": [""]}}
    if task is not None:
        options["converters"] = dict.fromkeys(task.keys, str)
    if suffix == ".tsv":  # GLUE's own files have lone quotation marks
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    return options


def _first(part: Part, limit: int | None) -> Part:
    if limit is None or limit >= len(part.data):
        return part
    return replace(part, data=part.data.select(range(limit)))


def _infer_task(
    args: DataTrainingArguments,
    found: dict[str, dict[str, Part]],
    read: Callable[[str], Part],
    config: PretrainedConfig,
) -> Task:
    """Read columns and labels off the training data, else the model, else the validation data."""
    parts = [part for stage in STAGES for part in found.get(stage, {}).values()]
    if "train" not in found and args.train_file is not None:
        parts.insert(0, read(args.train_file))
    first = parts[0]
    texts = [name for name in first.data.column_names if name not in ("label", "idx")]
    if {"sentence1", "sentence2"} <= set(texts):
        texts = ["sentence1", "sentence2"]
    if not texts:
        raise InputError(f"{first.source}: has no column with text, only {first.data.column_names}")
    own = _labels_of_model(config)
    if own and "train" not in found and args.train_file is None:
        return Task(None, tuple(texts[:2]), own)
    return Task(None, tuple(texts[:2]), _labels_of_data(first))


def label_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the classes in the order of the model's head."""
    names: dict[Any, str] = dict(config.id2label or {})
    return tuple(str(names[index]) for index in sorted(names))


def _labels_of_model(config: PretrainedConfig) -> tuple[str, ...]:
    names = label_names(config)
    generic = tuple(f"LABEL_{index}" for index in range(len(names)))
    return () if names == generic else names


def _labels_of_data(part: Part) -> tuple[str, ...]:
    if "label" not in part.data.column_names:
        raise InputError(f"{part.source}: has no column 'label', only {part.data.column_names}")
    feature = part.data.features["label"]
    if hasattr(feature, "names"):
        return tuple(feature.names)
    if str(feature.dtype).startswith("float"):
        return ()
    labels = sorted(value for value in part.data.unique("label") if value is not None)
    if len(labels) < 2:
        raise InputError(f"{part.source}: a classifier needs two classes; the labels are {labels}")
    return tuple(str(label) for label in labels)


def _check(part: Part, task: Task, stage: str) -> Part:
    """Check columns, texts and labels; drop the secret labels of a test set."""
    columns = part.data.column_names
    for key in (*task.keys, "label"):
        if key not in columns and not (key == "label" and stage == "test"):
            needed = ", ".join((*task.keys, "label"))
            raise InputError(
                f"{part.source}: column {key!r} is missing{nearest(key, columns)}. "
                f"Needed: {needed}. There: {', '.join(columns)}."
            )
    for key in task.keys:
        _check_texts(part, key)
    if "label" not in columns:
        return part
    if stage == "test" and set(part.data.unique("label")) == {UNLABELLED}:
        return replace(part, data=part.data.remove_columns("label"))
    _check_labels(part, task)
    return part


def _check_texts(part: Part, key: str) -> None:
    for row, value in enumerate(part.data[key][:], start=1):
        if not isinstance(value, str):
            raise InputError(f"{part.source}: row {row}, column {key!r}: {value!r} is not a text")


def _check_labels(part: Part, task: Task) -> None:
    encode = label_encoder(part, task)
    for row, value in enumerate(part.data["label"][:], start=1):
        if encode(value) is None:
            hint = " (-1 marks the rows of a test set without labels)" if value == -1 else ""
            raise InputError(
                f"{part.source}: row {row}: label {value!r} is outside {_range(task)}{hint}"
            )


def _range(task: Task) -> str:
    if task.is_regression:
        return "the range {} to {}".format(*task.bounds)
    if task.name is None:
        return f"the labels of this task: {', '.join(task.labels)}"
    pairs = ", ".join(f"{index} ({label})" for index, label in enumerate(task.labels))
    return f"the labels of {task.name}: {pairs}"


def label_encoder(part: Part, task: Task) -> Callable[[Any], float | int | None]:
    """Return the function from a label in the file to the model's target; None if invalid.

    A class may be given by its name or its id; a ClassLabel column by its own names.
    """
    if task.is_regression:
        return partial(_number, bounds=task.bounds)
    names = getattr(part.data.features["label"], "names", None)
    if names is not None and set(names) == set(task.labels):
        ids = [task.labels.index(name) for name in names]
        return lambda value: ids[value] if value in range(len(ids)) else None
    return partial(_class_id, labels=task.labels, ids_allowed=task.name is not None)


def _number(value: Any, bounds: tuple[float, float]) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and bounds[0] <= number <= bounds[1] else None


def _class_id(value: Any, labels: tuple[str, ...], ids_allowed: bool) -> int | None:
    if str(value) in labels:
        return labels.index(str(value))
    number = _number(value, (0, len(labels) - 1)) if ids_allowed else None
    return int(number) if number is not None and number.is_integer() else None


def tokenize(
    part: Part,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    order: list[int],
    max_length: int,
    args: DataTrainingArguments,
) -> Dataset:
    """Turn texts into tokens and labels into the model's targets.

    Args:
        part: checked rows.
        task: says which columns hold texts.
        tokenizer: the model's.
        order: id of a class in the task -> id in the model (its head may have another order).
        max_length: tokens kept.
        args: says whether to pad here (otherwise the collator does) and to use the cache.
    """
    encode = label_encoder(part, task) if "label" in part.data.column_names else None
    padding = "max_length" if args.pad_to_max_length else False

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[key] for key in task.keys]
        result = dict(tokenizer(*texts, padding=padding, max_length=max_length, truncation=True))
        if encode is not None:
            targets: list[Any] = [encode(value) for value in rows["label"]]
            result["labels"] = targets if task.is_regression else [order[t] for t in targets]
        return result

    return part.data.map(
        prepare,
        batched=True,
        remove_columns=part.data.column_names,
        load_from_cache_file=not args.overwrite_cache,
        desc="Tokenizing",
    )
