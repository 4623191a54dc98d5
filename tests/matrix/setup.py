# SPDX-License-Identifier: Apache-2.0
"""`SetUp`: a tiny model, its data and its Trainer; and the data that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, default_data_collator

VOCABULARY = 64
Example = dict[str, Any]


@dataclass(frozen=True)
class SetUp:
    """What is trained.

    Attributes:
        build: returns the model for a dropout rate.
        example: returns one example by a generator, and its number.
        collate: what makes a batch of examples.
        trainer: the Trainer class.
        arguments: the class of its arguments.
        settings: arguments beside the usual ones.
        given: what the Trainer gets beside the usual.
        per_example: losses of single examples, where the user has to give them.
    """

    build: Callable[[float], nn.Module]
    example: Callable[[torch.Generator, int], Example]
    collate: Callable[[list[Example]], Any] = default_data_collator
    trainer: type[Trainer] = Trainer
    arguments: type[TrainingArguments] = TrainingArguments
    settings: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    per_example: Any = None

    def data(self, n: int) -> list[Example]:
        """Return n examples, the same ones each time."""
        draw = torch.Generator().manual_seed(1)
        return [self.example(draw, i) for i in range(n)]


def tokens(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(5, VOCABULARY, shape, generator=draw)


def number(draw: torch.Generator, below: int) -> int:
    return int(torch.randint(0, below, (), generator=draw))


def text(draw: torch.Generator, i: int) -> Example:
    return {"input_ids": tokens(draw, 10), "labels": number(draw, 3)}


def text_with(labels: Callable[[torch.Generator], Any]) -> Callable[[torch.Generator, int], Any]:
    """Texts with labels of another kind."""
    return lambda draw, i: {"input_ids": tokens(draw, 10), "labels": labels(draw)}


def leading_out(labels: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Leave out the first few labels of a row."""
    labels[: number(draw, most)] = -100
    return labels


def trailing_out(labels: Tensor, most: int, draw: torch.Generator) -> Tensor:
    labels[len(labels) - number(draw, most) :] = -100
    return labels


def tags(draw: torch.Generator, i: int) -> Example:
    labels = torch.randint(0, 3, (10,), generator=draw)
    return {"input_ids": tokens(draw, 10), "labels": leading_out(labels, 8, draw)}


def sentence(draw: torch.Generator, i: int) -> Example:
    ids = tokens(draw, 12)
    return {"input_ids": ids, "labels": leading_out(ids.clone(), 9, draw)}


def full_sentence(draw: torch.Generator, i: int) -> Example:
    ids = tokens(draw, 12)
    return {"input_ids": ids, "labels": ids}


def masked_sentence(draw: torch.Generator, i: int) -> Example:
    ids, hidden = tokens(draw, 10), torch.rand(10, generator=draw) < 0.4
    hidden[0] = True
    return {
        "input_ids": ids.masked_fill(hidden, 3),
        "labels": ids.masked_fill(~hidden, -100),
    }


def translation(draw: torch.Generator, i: int) -> Example:
    labels = trailing_out(tokens(draw, 8), 5, draw)
    before = torch.cat([torch.tensor([2]), labels[:-1].clamp(min=0)])
    return {"input_ids": tokens(draw, 10), "labels": labels, "decoder_input_ids": before}


def picture(draw: torch.Generator, i: int) -> Example:
    return {"pixel_values": torch.randn(3, 32, 32, generator=draw), "labels": number(draw, 3)}


def pixels(draw: torch.Generator) -> Example:
    return {"pixel_values": torch.randn(3, 32, 32, generator=draw)}


def sound(draw: torch.Generator, i: int) -> Example:
    return {"input_values": torch.randn(1600, generator=draw), "labels": number(draw, 3)}


def point(draw: torch.Generator, i: int) -> Example:
    return {"x": torch.randn(8, generator=draw), "labels": number(draw, 3)}
