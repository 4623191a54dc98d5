# SPDX-License-Identifier: Apache-2.0
"""From texts to tokens, and from labels to the model's targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glue_scripts.arguments import DataTrainingArguments
from glue_scripts.labels import Target, label_encoder
from glue_scripts.sources import Part
from glue_scripts.tasks import Task
from shared_scripts.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Rows = dict[str, list[Any]]


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

    Raises:
        InputError: the tokenizer cannot read a text.
    """
    encode = label_encoder(part, task) if "label" in part.data.column_names else None
    padding = "max_length" if args.pad_to_max_length else False

    def prepare(rows: Rows) -> dict[str, Any]:
        texts = [rows[key] for key in task.keys]
        result = dict(tokenizer(*texts, padding=padding, max_length=max_length, truncation=True))
        if encode is not None:
            result["labels"] = [_in_order(encode(value), task, order) for value in rows["label"]]
        return result

    try:
        return part.data.map(
            prepare,
            batched=True,
            remove_columns=part.data.column_names,
            load_from_cache_file=not args.overwrite_cache,
            desc="Tokenizing",
        )
    except Exception as error:  # whatever a text can do to a tokenizer
        raise InputError(_unreadable(part, prepare, error)) from error


def _in_order(target: Target, task: Task, order: list[int]) -> Target:
    """Return a target of the task as the model's head wants it."""
    if task.is_regression:
        return target
    if isinstance(target, list):
        return [target[order.index(place)] for place in range(len(order))]
    assert isinstance(target, int)
    return order[target]


def _unreadable(part: Part, prepare: Callable[[Rows], Any], error: Exception) -> str:
    for row in range(len(part.data)):
        try:
            prepare(part.data[row : row + 1])
        except Exception as found:  # the same, row by row
            return (
                f"{part.source}: row {row + 1}: the tokenizer cannot read it: {one_line(found)}; "
                "mend or remove this row"
            )
    return f"{part.source}: cannot be tokenized: {one_line(error)}"
