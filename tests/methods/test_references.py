# SPDX-License-Identifier: Apache-2.0
"""Law 11: each method, on a bare Landscape in a hand-written loop, is its slow reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam import METHODS, Progress
from hf_sam.engine.checkpoint import load_state, save_state
from hf_sam.landscape import Engine
from tests.cases import CASES
from tests.references import REFERENCES, Question, options_of
from tests.toys import AdaptedBowl, Bowl, bowl_for

UPDATES = 20
SEED = 7

ROWS = [(key, options) for key in REFERENCES for options in options_of(key)]
TOYS = {case.key: case for case in CASES}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.01),
}


def name_of(row: tuple[str, dict[str, Any]]) -> str:
    return row[0] + "".join(f"-{v}" for v in row[1].values())


every_row = pytest.mark.parametrize(("key", "options"), ROWS, ids=map(name_of, ROWS))


Flat = Callable[[np.ndarray], np.ndarray]


class Written:
    """The loss of `Bowl`, the mean of |tanh(x A') B' + c - y|^2, worked out by hand.

    Attributes:
        pairs: places of A and B in the flat weights and the scale, for each adapter.
    """

    names = ("first.weight", "second.weight", "second.bias")
    shapes: Sequence[tuple[int, ...]] = ((4, 6), (3, 4), (3,))
    pairs: Sequence[tuple[slice, slice, float]] = ()
    base = np.zeros((0, 0))

    def pieces(self) -> list[tuple[str, slice, tuple[int, ...]]]:
        """The toy's used tensors, one after the other in a flat vector."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        places = map(slice, [0, *ends[:-1]], ends)
        return list(zip(self.names, places, self.shapes, strict=True))

    def cut(self, w: np.ndarray) -> list[np.ndarray]:
        return [w[place].reshape(shape) for _, place, shape in self.pieces()]

    def layers(self, w: np.ndarray) -> list[np.ndarray]:
        """The weights of both layers, and the bias."""
        return self.cut(w)

    def gradient_of(self, x: np.ndarray, y: np.ndarray) -> Flat:
        return lambda w: self.flat(w, *self.of_layers(x, y, *self.layers(w)))

    def of_layers(self, x: Any, y: Any, a: Any, b: Any, c: Any) -> list[np.ndarray]:
        """The gradients of both layers' weights, and of the bias."""
        h = np.tanh(x @ a.T)
        out = 2 * (h @ b.T + c - y) / len(x)
        back = (out @ b) * (1 - h * h)
        return [back.T @ x, out.T @ h, out.sum(0)]

    def flat(self, w: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """The flat gradient at w from those of both layers."""
        return np.concatenate([a.ravel(), b.ravel(), c])

    def changed(self, x: Any, y: Any, w: Any, added: Any) -> tuple[np.ndarray, np.ndarray]:
        """The flat gradient, and that of the first layer, to whose weight a matrix is added."""
        a, b, c = self.layers(w)
        found = self.of_layers(x, y, a + added, b, c)
        return self.flat(w, *found), found[0]

    def outputs_of(self, x: np.ndarray) -> Flat:
        def outputs(w: np.ndarray) -> np.ndarray:
            a, b, c = self.layers(w)
            return np.tanh(x @ a.T) @ b.T + c

        return outputs

    def losses_of(self, x: np.ndarray, y: np.ndarray) -> Flat:
        return lambda w: np.square(self.outputs_of(x)(w) - y).sum(1)


class WrittenAdapted(Written):
    """The loss of `AdaptedBowl`, whose first layer has the weight W + s B A."""

    names = ("first.lora_A.weight", "first.lora_B.weight", "second.bias")
    shapes = ((2, 6), (4, 2), (3,))

    def __init__(self, bowl: AdaptedBowl) -> None:
        self.base, self.second = bowl.base.weight.detach().numpy(), bowl.second.numpy()
        places = [place for _, place, _ in self.pieces()]
        self.pairs = [(places[0], places[1], bowl.SCALE)]

    def layers(self, w: np.ndarray) -> list[np.ndarray]:
        a, b, c = self.cut(w)
        return [self.base + self.pairs[0][2] * b @ a, self.second, c]

    def flat(self, w: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        mine, scale = self.cut(w), self.pairs[0][2]
        return np.concatenate([
            *((scale * mine[1].T @ a).ravel(), (scale * a @ mine[0].T).ravel()),
            c,
        ])


def written(bowl: Bowl) -> Written:
    return WrittenAdapted(bowl) if isinstance(bowl, AdaptedBowl) else Written()


def lr_ratio(step: int) -> float:
    return 1 - step / UPDATES


def slow(key: str, options: dict[str, Any], optim: str, where: list[bool]) -> np.ndarray:
    """The flat weights after all updates, by the reference."""
    bowl, method = bowl_for(TOYS[key]), REFERENCES[key](**options)
    toy = written(bowl)
    start = torch.cat([p.detach().flatten() for p in bowl.params[:3]])
    mask = np.concatenate([
        np.full(int(np.prod(s)), w) for s, w in zip(toy.shapes, where[:3], strict=True)
    ])
    w = torch.nn.Parameter(start.clone())
    optimizer = OPTIMIZERS[optim]([w])
    lr = optimizer.param_groups[0]["lr"]
    for step in range(UPDATES):
        optimizer.param_groups[0]["lr"] = lr * lr_ratio(step)
        x, y = (t.numpy() for t in bowl.batch(step))
        question = Question(
            toy.gradient_of(x, y),
            w.detach().numpy(),
            toy.pieces(),
            mask.astype(float),
            step,
            UPDATES,
            lr_ratio(step),
            SEED,
            batches=[range(3), range(3, 6)],
            part=lambda rows, x=x, y=y: toy.gradient_of(x[rows], y[rows]),
            losses=toy.losses_of(x, y),
            other=lambda i: toy.gradient_of(*(t.numpy() for t in bowl.batch(1000 + i, 1))),
            idle=bowl.params[3].detach().numpy().ravel(),
            rate=lr * lr_ratio(step),
            pairs=toy.pairs,
            layer=lambda w, added, x=x, y=y: toy.changed(x, y, w, added),
            base=toy.base,
            outputs=toy.outputs_of(x),
            targets=y,
            aimed=lambda targets, x=x: toy.gradient_of(x, targets),
        )
        w.grad = torch.from_numpy(method(question))
        optimizer.step()
    return w.detach().numpy()


class Loop:
    """A hand-written training loop around a method."""

    def __init__(self, key: str, options: dict[str, Any], optim: str, where: list[bool]) -> None:
        self.bowl, self.where = bowl_for(TOYS[key]), where
        self.method = METHODS[key](**options)
        self.optimizer = OPTIMIZERS[optim](self.bowl.params)
        self.lr = self.optimizer.param_groups[0]["lr"]

    def run(self, start: int, end: int) -> None:
        for step in range(start, end):
            self.optimizer.param_groups[0]["lr"] = lr = self.lr * lr_ratio(step)
            at = self.bowl.landscape(
                batches=2,
                step=step,
                seed=SEED,
                where=self.where,
                progress=Progress(step, UPDATES, lr_ratio=lr_ratio(step), learning_rate=lr),
            )
            for p, u in zip(self.bowl.params, self.method(at), strict=True):
                p.grad = u
            self.optimizer.step()
            self.optimizer.zero_grad()

    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in self.bowl.params[:3]]).numpy()


@every_row
@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("where", [[True] * 4, [True, False, True, True]], ids=["all", "masked"])
def test_agrees_with_its_reference(
    key: str, options: dict[str, Any], optim: str, where: list[bool]
) -> None:
    loop = Loop(key, options, optim, where)
    before, unused = loop.weights(), loop.bowl.params[3].detach().clone()
    loop.run(0, UPDATES)
    expected = slow(key, options, optim, where)
    np.testing.assert_allclose(loop.weights(), expected, rtol=1e-9)
    assert np.abs(expected - before).max() > 0.05
    assert torch.equal(loop.bowl.params[3].detach(), unused), "weight decay touched it"


@every_row
def test_resumes_from_a_checkpoint(key: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Law 5 on a bare Landscape: through files, from between two of LookSAM's refreshes."""
    whole = Loop(key, options, "adamw", [True] * 4)
    whole.run(0, UPDATES)
    first = Loop(key, options, "adamw", [True] * 4)
    first.run(0, 7)
    names = first.bowl.names
    here = (names, first.bowl.params, Engine())
    save_state(tmp_path, first.method.describe(), first.method.state_dict(), *here, main=True)
    described = METHODS[key](**options).describe()
    state = load_state(tmp_path, described, *here)
    first.method = METHODS[key](**options)
    first.method.load_state_dict(state)
    first.run(7, UPDATES)
    np.testing.assert_array_equal(first.weights(), whole.weights())


def test_every_method_has_a_reference() -> None:
    assert set(REFERENCES) == set(METHODS) - {"none"}, (
        "write tests/references/KEY.py for each method"
    )
