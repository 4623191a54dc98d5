# SPDX-License-Identifier: Apache-2.0
"""Classes and labels: what a model's head, a file and a task call them, and how they match."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glue_scripts.sources import Part
from glue_scripts.tasks import MULTI, REGRESSION, SINGLE, Task
from shared_scripts.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

UNLABELLED = -1  # GLUE's own mark in the test sets whose labels are secret
HEAD = "ForSequenceClassification"
Target = float | int | list[float] | None


def head_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of the classes in the order of the model's head.

    A configuration may say them in `label2id` alone, where `id2label` has transformers' own.
    """
    names: dict[Any, str] = dict(config.id2label or {})
    found = tuple(str(names[index]) for index in sorted(names))
    if is_generic(found):
        names = {index: name for name, index in (config.label2id or {}).items()}
        if set(names) == set(range(len(found))):
            found = tuple(str(names[index]) for index in range(len(found)))
    return found


def is_generic(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives where nobody gave any."""
    return tuple(names) == tuple(f"LABEL_{index}" for index in range(len(names)))


def has_head(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was saved with a head for sequence classification."""
    saved = any(name.endswith(HEAD) for name in config.architectures or [])
    return saved or not is_generic(head_names(config))


def head_problem(config: PretrainedConfig) -> str:
    """Return the kind of task that the checkpoint's head was trained on."""
    if config.problem_type is not None:
        return str(config.problem_type)
    return REGRESSION if config.num_labels == 1 else SINGLE


def match(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return for each label its place among the names, by case only where that is needed.

    None if they are not the same labels, or if case alone tells some of them apart.
    """
    for same in (str, str.casefold):
        have, want = [same(name) for name in names], [same(label) for label in labels]
        if sorted(have) == sorted(want) and len(set(have)) == len(have):
            return [have.index(label) for label in want]
    return None


def label_order(config: PretrainedConfig, task: Task) -> list[int]:
    """Return, for each class of the task, its place in the model's head.

    A model that was trained on the same classes keeps its own order; any other takes the task's,
    with a warning where the head has as many classes under other names.
    """
    names = head_names(config)
    found = match(names, task.labels)
    if found is not None:
        return found
    foreign = has_head(config) and not is_generic(names) and not task.is_regression
    if foreign and len(names) == task.num_labels:
        logger.warning(
            "The labels of the model's head are not the task's. Head: %s. Task: %s. They are taken "
            "for each other in this order; if that is wrong, mend id2label and label2id in the "
            "model's config.json",
            ", ".join(names),
            ", ".join(task.labels),
        )
    return list(range(task.num_labels))


def problem_of(part: Part) -> str:
    """Return the kind of task that a label column is of.

    Raises:
        InputError: there is no such column, or it holds what is no label.
    """
    if "label" not in part.data.column_names:
        raise InputError(
            f"{part.source}: has no column 'label', only {part.data.column_names}; "
            "--label_column_name says where the labels are"
        )
    feature = part.data.features["label"]
    if hasattr(feature, "feature"):
        return MULTI
    kind = str(getattr(feature, "dtype", "object"))
    if kind.startswith("float"):
        return REGRESSION
    if hasattr(feature, "names") or kind.startswith(("int", "uint", "bool", "string", "large_st")):
        return SINGLE
    raise InputError(_no_label(part))


def _no_label(part: Part) -> str:
    """Say which row is the first whose label is no text and no number, or is of another kind."""
    first: Any = None
    for row, value in enumerate(part.values("label"), start=1):
        if value is None:
            continue
        first = value if first is None else first
        if isinstance(value, dict | list):
            return f"{part.source}: row {row}: label {shown(value)} is no text and no number"
        if type(value) is not type(first):
            return (
                f"{part.source}: row {row}: label {shown(value)} is of another kind than "
                f"{shown(first)}: write all labels as texts, or all as whole numbers"
            )
    if first is None:
        return f"{part.source}: the column 'label' is empty"
    return f"{part.source}: row 1: label {shown(first)} is no text and no whole number"


def classes_of(part: Part, problem: str) -> tuple[str, ...]:
    """Return the names of the classes of a training set: those declared, else those found.

    Raises:
        InputError: fewer than two.
    """
    feature = part.data.features["label"]
    feature = feature.feature if problem == MULTI else feature
    declared = getattr(feature, "names", None)
    if declared is not None:
        return tuple(declared)
    found = found_names(part, problem)
    if len(found) < 2:
        raise InputError(f"{part.source}: a classifier needs two classes; the labels are {found}")
    return tuple(found)


def found_names(part: Part, problem: str) -> list[str]:
    """Return the names of the classes that a set holds, numbers in the order of their size."""
    values: Iterable[Any] = part.values("label")
    if problem == MULTI:
        values = (item for value in values if value is not None for item in value)
    present = {value for value in values if not is_missing(value)}
    return [name_of(value) or "" for value in sorted(present)]


def check_no_scores(part: Part) -> None:
    """Refuse texts that are all numbers but not all finite: scores with a damaged one.

    Raises:
        InputError: names the row that is no score.
    """
    values = [None if is_missing(value) else value for value in part.values("label")]
    numbers = [_parsed(value) for value in values if value is not None]
    fractions = [str(value) for value in values if "." in str(value) and _is_finite(value)]
    if None in numbers or not fractions:
        return
    for row, value in enumerate(values, start=1):
        if not _is_finite(value):
            raise InputError(
                f"{part.source}: row {row}: label {shown(value)} is no score, as others are: mend "
                "it, or say what they are with --problem_type"
            )


def _parsed(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_finite(value: Any) -> bool:
    number = _parsed(value)
    return number is not None and math.isfinite(number)


def check_all_trained(part: Part, task: Task) -> None:
    """Refuse a class of the task that the whole training set lacks.

    Raises:
        InputError: names the class.
    """
    encode = label_encoder(part, task)
    targets = [encode(value) for value in part.values("label")]
    if task.is_multi_label:
        seen = {i for t in targets if isinstance(t, list) for i, on in enumerate(t) if on}
    else:
        seen = {target for target in targets if isinstance(target, int)}
    for index, label in enumerate(task.labels):
        if index not in seen:
            raise InputError(
                f"{part.source}: no training row has the class {label!r}, one of "
                f"{len(task.labels)}: add rows of it, or leave it out of the task's classes"
            )


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label at all."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def name_of(value: Any) -> str | None:
    """Return the name that a class has in a file: the number 1.0 is the class "1"."""
    if is_missing(value) or isinstance(value, dict | list):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def label_encoder(part: Part, task: Task) -> Callable[[Any], Target]:
    """Return the function from a label in the file to the task's target; None if invalid.

    A class may be given by its name or, for GLUE's tasks, its id; a ClassLabel column by its own
    names.
    """
    if task.is_regression:
        return partial(_number, bounds=task.bounds)
    feature = part.data.features["label"]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    encode: Callable[[Any], int | None] = partial(_class_id, task=task)
    if names is not None:
        encode = _of_class_label(names, task)
    return partial(_several, encode=encode, task=task) if task.is_multi_label else encode


def _of_class_label(names: Sequence[str], task: Task) -> Callable[[Any], int | None]:
    """Return the function from an id in a column that declares its classes, by their names."""
    ids = match(task.labels, names) or [_class_id(name, task) for name in names]
    return lambda value: ids[value] if value in range(len(ids)) else None


def _number(value: Any, bounds: tuple[float, float]) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and bounds[0] <= number <= bounds[1] else None


def _class_id(value: Any, task: Task) -> int | None:
    name = name_of(value)
    if name is None:
        return None
    if name in task.labels:
        return task.labels.index(name)
    if task.name is None and not is_generic(task.labels):
        return None
    lower = [label.casefold() for label in task.labels]
    if lower.count(name.casefold()) == 1:
        return lower.index(name.casefold())
    number = _number(value, (0, len(task.labels) - 1))
    return int(number) if number is not None and number.is_integer() else None


def _several(value: Any, encode: Callable[[Any], int | None], task: Task) -> list[float] | None:
    """Return one number per class, 1.0 for those that the label lists."""
    if not isinstance(value, list | tuple):
        return None
    ids = [encode(item) for item in value]
    return None if None in ids else [float(i in ids) for i in range(len(task.labels))]


def label_range(task: Task) -> str:
    """Say which labels a task has, for an error."""
    if task.is_regression:
        bounded = all(math.isfinite(bound) for bound in task.bounds)
        return "the range {} to {}".format(*task.bounds) if bounded else "the finite numbers"
    if task.name is None:
        return f"the labels of this task: {_some(task.labels)}"
    pairs = ", ".join(f"{index} ({label})" for index, label in enumerate(task.labels))
    return f"the labels of {task.name}: {pairs}"


def _some(labels: Sequence[str], limit: int = 20) -> str:
    more = f", ... ({len(labels)} in all)" if len(labels) > limit else ""
    return ", ".join(labels[:limit]) + more
