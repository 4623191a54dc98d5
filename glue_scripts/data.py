# SPDX-License-Identifier: Apache-2.0
"""The data of a run: what is learned from it, and whether it is sound."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from glue_scripts import labels as label_rules
from glue_scripts.arguments import DataTrainingArguments
from glue_scripts.sources import STAGES, Part, Reader, evaluation_name
from glue_scripts.tasks import KNOWN, MULTI, REGRESSION, SINGLE, Task
from hf_sam.parts.base import nearest
from shared_scripts.errors import InputError, shown
from shared_scripts.hold_out import hold_out

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


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
    seed: int = 0,
) -> GlueData:
    """Find, read, check and cut the splits that the stages need.

    Args:
        args: where the data comes from, and how much of it is used.
        stages: any of "train", "validation", "test".
        config: the model's, for the label names of a task that is not GLUE's.
        cache_dir: where prepared files are kept; default: the datasets library's cache.
        token: for the Hub.
        seed: of the share that is held out of the training set.

    Raises:
        InputError: no source, an unreadable file, missing columns, labels outside the range, a
            class without training rows.
    """
    reader = Reader(args, cache_dir, token)
    share = args.train_val_split
    read = [stage for stage in stages if stage == "test" or share is None]
    found = {stage: reader.find(stage) for stage in read}
    if share is not None:
        whole = _first(reader.find("train")["train"], args.max_train_samples)
        held = _held_out(whole, share, seed, evaluation_name(args.task_name))
        found = {stage: held.get(stage) or found[stage] for stage in stages}
    task = KNOWN.get(args.task_name or "") or _infer_task(args, found, reader, config)
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
    if "train" in found and not task.is_regression:
        label_rules.check_all_trained(found["train"]["train"], task)
    return GlueData(task, checked)


def _held_out(whole: Part, share: float, seed: int, name: str) -> dict[str, dict[str, Part]]:
    """Return the training set and, under the name of an evaluation, what is held out of it."""
    labels = whole.values("label") if "label" in whole.data.column_names else []
    # Scores and lists of classes are no classes of which one row has to stay.
    classes = [label if isinstance(label, (int, str)) else None for label in labels]
    kept, held = hold_out(classes or [None] * len(whole.data), share, seed, whole.source)
    logger.warning(
        "%d of the %d training examples are held out to evaluate on, as --train_val_split %s and "
        "seed %d say; the validation set is not read",
        *(len(held), len(whole.data), share, seed),
    )
    train, validation = (replace(whole, data=whole.data.select(rows)) for rows in (kept, held))
    return {"train": {"train": train}, "validation": {name: validation}}


def _first(part: Part, limit: int | None) -> Part:
    if limit is None or limit >= len(part.data):
        return part
    return replace(part, data=part.data.select(range(limit)))


def _infer_task(
    args: DataTrainingArguments,
    found: dict[str, dict[str, Part]],
    reader: Reader,
    config: PretrainedConfig,
) -> Task:
    """Read the columns off the data, the labels off the training data or else the model's head."""
    parts = [part for stage in STAGES for part in found.get(stage, {}).values()]
    training = found["train"]["train"] if "train" in found else None
    if training is None and args.train_file is not None:
        training = reader.file(args.train_file)
    keys = _text_columns(args.text_column_names, training or parts[0])
    if training is not None:
        problem, names = _learned(args.problem_type, training, config)
    elif label_rules.has_head(config):
        problem, names = _of_head(args.problem_type, parts, config)
    else:
        problem, names = _learned(args.problem_type, parts[0], config)
    return Task(None, keys, names, is_multi_label=problem == MULTI)


def _text_columns(wanted: Sequence[str] | None, part: Part) -> tuple[str, ...]:
    """Return the one or two columns with texts: those named, or else the first that hold texts."""
    columns = [name for name in part.data.column_names if name not in ("label", "idx")]
    if wanted:
        return tuple(wanted)
    if {"sentence1", "sentence2"} <= set(columns):
        return ("sentence1", "sentence2")
    texts = [name for name in columns if "string" in str(part.data.features[name])]
    if not columns:
        raise InputError(f"{part.source}: has no column with text, only {part.data.column_names}")
    return tuple((texts or columns)[:2])


def _learned(
    wanted: str | None, part: Part, config: PretrainedConfig
) -> tuple[str, tuple[str, ...]]:
    """Return the kind of task that a labelled set is of, and its classes."""
    found = label_rules.problem_of(part)
    if (found == MULTI) != ((wanted or SINGLE) == MULTI):
        value = next((value for value in part.values("label") if value is not None), None)
        raise InputError(
            f"{part.source}: row 1: label {shown(value)} is {'' if found == MULTI else 'not '}a "
            f"list: lists of classes, and nothing else, go with --problem_type {MULTI}"
        )
    if wanted is None and found == SINGLE:
        label_rules.check_no_scores(part)
    problem = wanted or found
    if wanted is None and found == SINGLE and _goes_on_with_scores(part, config):
        logger.warning(
            "The model's head was trained on scores: the whole numbers in %s are taken as scores. "
            "--problem_type %s takes them as classes",
            part.source,
            SINGLE,
        )
        problem = REGRESSION
    return problem, () if problem == REGRESSION else label_rules.classes_of(part, problem)


def _goes_on_with_scores(part: Part, config: PretrainedConfig) -> bool:
    numbers = str(getattr(part.data.features["label"], "dtype", "")).startswith(("int", "uint"))
    head = label_rules.has_head(config) and label_rules.head_problem(config) == REGRESSION
    return head and numbers and not hasattr(part.data.features["label"], "names")


def _of_head(
    wanted: str | None, parts: Sequence[Part], config: PretrainedConfig
) -> tuple[str, tuple[str, ...]]:
    """Return the kind of task that the checkpoint's head was trained on, and its classes."""
    problem = label_rules.head_problem(config)
    if wanted is not None and wanted != problem:
        raise InputError(
            f"--problem_type {wanted}: the checkpoint's head is for {problem}; leave it out, or "
            "train a new head with --do_train"
        )
    if problem == REGRESSION and config.num_labels != 1:
        raise InputError(
            f"the checkpoint's head gives {config.num_labels} scores per text; this script knows "
            "regression tasks with one"
        )
    if problem == REGRESSION:
        return problem, ()
    names = label_rules.head_names(config)
    labelled = [part for part in parts if _has_labels(part)]
    if labelled and label_rules.is_generic(names):
        names = _names_for_numbers(labelled[0], problem, names)
    return problem, names


def _names_for_numbers(part: Part, problem: str, generic: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes of a head without names as a labelled set calls them."""
    if (label_rules.problem_of(part) == MULTI) != (problem == MULTI):
        return generic
    feature = part.data.features["label"]
    declared = getattr(getattr(feature, "feature", feature), "names", None)
    if declared is not None and len(declared) == len(generic):
        return tuple(declared)
    found = label_rules.found_names(part, problem)
    numbers = tuple(str(index) for index in range(len(generic)))
    if set(found) <= set(numbers):
        return numbers
    if set(found) <= set(generic) or len(found) != len(generic):
        return generic
    logger.warning(
        "The model's head does not name its classes: they are taken to be those of %s in this "
        "order: %s",
        part.source,
        ", ".join(found),
    )
    return tuple(found)


def _has_labels(part: Part) -> bool:
    return "label" in part.data.column_names and not _all_secret(part)


def _all_secret(part: Part) -> bool:
    """Whether no row has a label: none at all, an empty cell, or GLUE's mark."""
    return all(
        label_rules.is_missing(value) or value in (label_rules.UNLABELLED, [])
        for value in part.values("label")
    )


def _check(part: Part, task: Task, stage: str) -> Part:
    """Check columns, texts and labels; drop the secret labels of a test set."""
    columns = part.data.column_names
    for key in (*task.keys, "label"):
        if key not in columns and not (key == "label" and stage == "test"):
            needed = ", ".join((*task.keys, "label"))
            raise InputError(
                f"{part.source}: column {key!r} is missing{nearest(key, columns)}. "
                f"Needed: {needed}. There: {', '.join(map(str, columns))}."
            )
    for key in task.keys:
        _check_texts(part, key)
    if "label" not in columns:
        return part
    if stage == "test" and _all_secret(part):
        return replace(part, data=part.data.remove_columns("label"))
    _check_labels(part, task)
    return part


def _check_texts(part: Part, key: str) -> None:
    for row, value in enumerate(part.values(key), start=1):
        if not isinstance(value, str):
            raise InputError(
                f"{part.source}: row {row}, column {key!r}: {shown(value)} is not a text; "
                "--text_column_names says which columns hold the texts"
            )


def _check_labels(part: Part, task: Task) -> None:
    encode = label_rules.label_encoder(part, task)
    for row, value in enumerate(part.values("label"), start=1):
        if encode(value) is None:
            raise InputError(
                f"{part.source}: row {row}: label {shown(value)} is outside "
                f"{label_rules.label_range(task)}{_hint(value, task, part)}"
            )


def _hint(value: Any, task: Task, part: Part) -> str:
    names = getattr(part.data.features["label"], "names", None)
    if names is not None and value in range(len(names)):
        return f" (the file declares it as {shown(names[value])})"
    if value == label_rules.UNLABELLED:
        return " (-1 marks the rows of a test set without labels)"
    if label_rules.is_missing(value):
        return " (it is empty: give a label or remove the row)"
    if task.is_multi_label and not isinstance(value, list):
        return " (it must be a list of classes)"
    return ""
