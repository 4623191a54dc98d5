# SPDX-License-Identifier: Apache-2.0
"""Whether model, tokenizer and texts fit each other, asked before the first update."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch

from shared_scripts.errors import InputError, one_line, shown

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ON_ACCELERATORS_ONLY = "flash"  # attention that cannot be tried where the model is built


def max_length(
    wanted: int, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, pair: bool
) -> int:
    """Return `wanted`, or with a warning the largest number of tokens that the model takes.

    Raises:
        InputError: no text fits into so few tokens.
    """
    limit = int(min(tokenizer.model_max_length, positions(model) or wanted))
    if wanted > limit:
        logger.warning("--max_seq_length %d is more than the model takes: using %d", wanted, limit)
    length = min(wanted, limit)
    marks = tokenizer.num_special_tokens_to_add(pair=pair)
    if length <= marks:
        raise InputError(
            f"--max_seq_length {wanted}: {length} tokens leave no room for a text, as the "
            f"tokenizer adds {marks} of its own; give at least {marks + 1 + pair}"
        )
    return length


def positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has positions for; None if it sets no limit.

    RoBERTa and its kin number their positions from the padding's number plus one, so they hold
    fewer tokens than their configuration says; XLNet says -1, for no limit.
    """
    said = getattr(_base(model).config, "max_position_embeddings", None)
    if not isinstance(said, int) or said <= 0:
        return None
    offsets = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and getattr(module, "padding_idx", None) is not None
        and len(module.weight) == said  # a larger table has room for the padding beside them
    ]
    return said - max(offsets, default=0)


def _base(model: Any) -> Any:
    """Return the model under its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass
class Reading:
    """What is known of the tokens of a data set, one number per row.

    Attributes:
        lengths: tokens without padding.
        largest: the largest id.
        ends: how often the tokenizer's end token occurs.
    """

    lengths: np.ndarray
    largest: np.ndarray
    ends: np.ndarray


def read(tokens: Dataset, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Count, in pieces, so that a data set of any size can be read."""
    end = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    lengths, largest, ends = [], [], []
    for table in tokens.with_format("arrow").iter(batch_size=10_000):
        rows = _Rows(table["input_ids"])
        mask = table["attention_mask"] if "attention_mask" in table.column_names else None
        lengths.append(rows.counts if mask is None else _Rows(mask).total(lambda ids: ids))
        largest.append(rows.largest())
        ends.append(rows.total(lambda ids: ids == end))
    return Reading(np.concatenate(lengths), np.concatenate(largest), np.concatenate(ends))


class _Rows:
    """A column of lists of numbers; rows may be empty."""

    def __init__(self, column: Any) -> None:
        self.counts = pc.list_value_length(column).to_numpy()
        self.flat = pc.list_flatten(column).to_numpy()
        self.row = np.repeat(np.arange(len(self.counts)), self.counts)

    def total(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.bincount(self.row, weights=of(self.flat), minlength=len(self.counts))

    def largest(self) -> np.ndarray:
        found = np.full(len(self.counts), -1)
        np.maximum.at(found, self.row, self.flat)
        return found


def check(
    model: PreTrainedModel,
    tokens: Dataset,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Run the longest texts, and those with a stray end token, through the model.

    Args:
        model: with its head, wherever it was built.
        tokens: row i is row i of the source.
        source: the file or split, for errors.
        tokenizer: the model's.
        collate: makes a batch of rows.

    Raises:
        InputError: names the source, the row, the reason and the remedy.
    """
    reading = read(tokens, tokenizer)
    _check_ids(model, reading, source, tokenizer)
    empty = np.flatnonzero(reading.lengths == 0)
    if len(empty):
        raise InputError(
            f"{source}: row {empty[0] + 1}: gives no token, as its text is empty; remove it"
        )
    if str(getattr(_base(model).config, "_attn_implementation", "")).startswith(
        ON_ACCELERATORS_ONLY
    ):
        return
    longest = np.argsort(-reading.lengths, kind="stable")[:2].tolist()
    hint = "give a smaller --max_seq_length, or the tokenizer of this model in --tokenizer_name"
    _try(model, tokens, longest, source, collate, hint)
    odd = _odd_one_out(reading.ends)
    if odd is not None:
        end = shown(tokenizer.eos_token)
        _try(model, tokens, odd, source, collate, f"its text holds {end}: remove that from it")


def _check_ids(
    model: PreTrainedModel, reading: Reading, source: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Compare the largest token, or padding, with the embedding of the model."""
    try:
        rows = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # a model may embed in a way of its own
        return
    row = int(np.argmax(reading.largest))
    largest = int(reading.largest[row])
    where = f"{source}: row {row + 1}"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id > largest:
        largest, where = tokenizer.pad_token_id, f"{source}: padding"
    if largest >= rows:
        word = shown(tokenizer.convert_ids_to_tokens(largest))
        raise InputError(
            f"{where}: token {word} has the number {largest}, but the model knows only {rows} "
            f"tokens (0 to {rows - 1}): the tokenizer is not this model's; give its own in "
            "--tokenizer_name"
        )


def _odd_one_out(ends: np.ndarray) -> list[int] | None:
    """Return the first row with an unusual number of end tokens, after a usual one."""
    counts, places = np.unique(ends, return_inverse=True)
    if len(counts) == 1:
        return None
    usual = int(np.argmax(np.bincount(places)))
    return [int(np.argmax(places != usual)), int(np.argmax(places == usual))]


def _try(
    model: PreTrainedModel,
    tokens: Dataset,
    rows: list[int],
    source: str,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    remedy: str,
) -> None:
    taken = {*inspect.signature(_base(model).forward).parameters, "labels"}
    known = [name for name in tokens.column_names if name in taken]
    batch = collate([{name: tokens[row][name] for name in known} for row in rows])
    device = next(model.parameters()).device
    trains = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
    except Exception as error:  # a model may raise anything for what it was not made for
        raise InputError(
            f"{source}: row {rows[0] + 1}: {type(_base(model)).__name__} cannot read it "
            f"({len(batch['input_ids'][0])} tokens): {one_line(error)}; {remedy}"
        ) from error
    finally:
        model.train(trains)
    expected = (len(rows), model.config.num_labels)
    if tuple(logits.shape) != expected:
        raise InputError(
            f"{type(_base(model)).__name__} gives outputs of shape {tuple(logits.shape)} for "
            f"{len(rows)} texts, not {expected}: it is no model for sequence classification"
        )
