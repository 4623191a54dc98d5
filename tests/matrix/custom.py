# SPDX-License-Identifier: Apache-2.0
"""Set-ups of modules of the user's own, of every kind of loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .setup import VOCABULARY, SetUp, full_sentence, number, point, text


class Net(nn.Module):
    """Scores of three classes, and a loss that is given."""

    def __init__(self, dropout: float, loss: Any = functional.cross_entropy) -> None:
        super().__init__()
        self.loss = loss
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(x)
        return {"loss": self.loss(logits, labels), "logits": logits}


class AsTuple(Net):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return tuple(super().forward(x, labels).values())


class Normed(Net):
    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        self.net.insert(1, nn.BatchNorm1d(16))


class MixedUp(Net):
    """Mixes examples by random numbers of Python and numpy."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        if not self.training:
            return super().forward(x, labels)
        share, order = np.random.beta(0.5, 0.5), list(range(len(x)))
        random.shuffle(order)
        logits = self.net(share * x + (1 - share) * x[order])
        loss, other = self.loss(logits, labels), self.loss(logits, labels[order])
        return {"loss": share * loss + (1 - share) * other, "logits": logits}


class Quantized(Net):
    """Has whole numbers for some of its frozen weights."""

    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        whole = torch.randint(-128, 127, (8, 8), dtype=torch.int8)
        self.frozen = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return super().forward(x + x @ (self.frozen.to(x) * 0.02).T, labels)


class Shifting(nn.Module):
    """A language model that shifts its labels by itself."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(VOCABULARY, 16), nn.Dropout(dropout)
        self.cells = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.out(self.drop(self.cells(self.words(input_ids))[0]))
        assert labels is not None
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class Packed(nn.Module):
    """Takes sequences of several lengths at once."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 16)
        self.cells = nn.LSTM(16, 16, num_layers=2, dropout=dropout, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, lengths: Tensor, labels: Tensor | None = None) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(input_ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        logits = self.out(self.cells(packed)[1][0][-1])
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Triplet(nn.Module):
    """Learns distances, without a label."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Linear(16, 4))

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Any:
        points = (self.net(x) for x in (anchor, positive, negative))
        return {"loss": functional.triplet_margin_loss(*points)}


def with_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[float], nn.Module]:
    return lambda dropout: Net(dropout, loss)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="sum")


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    weight = torch.tensor([0.05, 1.0, 5.0])
    return functional.cross_entropy(logits, labels, weight=weight.to(logits))


def each_summed(outputs: Any, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs["logits"], labels, reduction="none")


def lengths(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {**text(draw, i), "lengths": 4 + number(draw, 6)}


def three(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {k: torch.randn(8, generator=draw) for k in ("anchor", "positive", "negative")}


SETUPS = {
    "own module": SetUp(Net, point),
    "own module, a tuple": SetUp(AsTuple, point),
    "own module, batch norm": SetUp(Normed, point),
    "own module, mixup": SetUp(MixedUp, point),
    "own module, frozen int8": SetUp(Quantized, point),
    "own module, a sum": SetUp(with_loss(summed), point, per_example=each_summed),
    "own module, class weights": SetUp(with_loss(weighted), point),
    "own module, shifts inside": SetUp(Shifting, full_sentence),
    "own module, packed LSTM": SetUp(Packed, lengths),
    "own module, triplets": SetUp(Triplet, three),
}
