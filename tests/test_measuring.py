# SPDX-License-Identifier: Apache-2.0
"""Cut batches on any loss: at radius 0 the plain Trainer's gradient, or a word why not."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    Trainer,
    set_seed,
)

from hf_sam.host.asking import WithoutDropout
from hf_sam.host.weighting import Weighting, candidates
from hf_sam.host.window import Batch, TrainerOps
from hf_sam.landscape import Data
from tests.toys import bert, llama, logged, make_trainer, weights

B, T, C = 6, 5, 3
EXACT = {
    "dtype": torch.float64,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "learning_rate": 1.0,
    "max_steps": 2,
    "logging_nan_inf_filter": False,
    "train_sampling_strategy": "sequential",
}
Loss = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Scores of shape (B, T, C) of numbers of shape (B, T), and a loss that is given."""

    def __init__(self, loss: Loss, *inside: nn.Module, config: Any = None) -> None:
        super().__init__()
        set_seed(0)
        self.net = nn.Sequential(nn.Linear(T, 8), nn.Tanh(), *inside, nn.Linear(8, T * C))
        self.loss, self.config = loss, config

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x).view(-1, T, C)
        loss = None if labels is None else self.loss(logits, labels)
        return {"loss": loss, "logits": logits}


def entropy(logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
    """Cross-entropy of classes (B,) or of tokens (B, T)."""
    scores = logits[:, 0] if labels.ndim == 1 else logits.flatten(0, -2)
    return functional.cross_entropy(scores, labels.flatten(), **more)


def per_token(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over examples of the mean over each one's tokens, as CTC's mean."""
    each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (each.sum(1) / labels.ne(-100).sum(1)).mean()


def masked(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the numbers other than -100."""
    kept = labels.ne(-100)
    return (logits - labels).square()[kept].mean()


def classes(draw: torch.Generator) -> Tensor:
    return torch.randint(0, C, (), generator=draw)


def tokens(draw: torch.Generator) -> Tensor:
    return torch.randint(0, C, (T,), generator=draw)


def ragged(draw: torch.Generator) -> Tensor:
    labels = tokens(draw)
    labels[int(torch.randint(2, T + 1, (), generator=draw)) :] = -100
    return labels


def some(draw: torch.Generator) -> Tensor:
    return classes(draw) if torch.rand((), generator=draw) < 0.6 else torch.tensor(-100)


def numbers(draw: torch.Generator) -> Tensor:
    return torch.rand(T, C, generator=draw).double()


def gaps(draw: torch.Generator) -> Tensor:
    kept = torch.rand(T, C, generator=draw) < torch.rand((), generator=draw)
    return torch.where(kept, numbers(draw), -100.0)


def void(draw: torch.Generator) -> Tensor:
    labels = ragged(draw)
    return torch.where(labels == -100, 255, labels)[None, :]


SEGMENTS = PretrainedConfig(semantic_loss_ignore_index=255)
KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor]]] = {
    "classes": (lambda: Net(entropy), classes),
    "classes, some missing": (lambda: Net(entropy), some),
    "several labels": (
        lambda: Net(functional.binary_cross_entropy_with_logits),
        lambda draw: numbers(draw).round(),
    ),
    "frames of numbers": (lambda: Net(functional.l1_loss), numbers),
    "numbers, some missing": (lambda: Net(masked), gaps),
    "numbers of which one is -100": (
        lambda: Net(functional.mse_loss),
        lambda draw: numbers(draw).index_fill(0, classes(draw), -100.0),
    ),
    "tokens": (lambda: Net(entropy), ragged),
    "tokens that the model shifts": (
        lambda: Net(lambda z, y: entropy(z[:, :-1], y[:, 1:])),
        ragged,
    ),
    "mean of means": (lambda: Net(per_token), ragged),
    "sum": (lambda: Net(lambda z, y: entropy(z, y, reduction="sum")), classes),
    "sum of tokens": (lambda: Net(lambda z, y: entropy(z, y, reduction="sum")), ragged),
    "pixels, some void": (
        lambda: Net(lambda z, y: entropy(z, y.flatten(1), ignore_index=255), config=SEGMENTS),
        void,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def data_of(labels: Callable[[torch.Generator], Tensor], n: int = 2 * B) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(T, generator=draw), "labels": labels(draw)} for _ in range(n)]


def run(folder: Path, model: nn.Module, data: Any, sam: str | None, **more: Any) -> Any:
    """A trainer after two updates of `B` examples each; `None` is Trainer itself."""
    k = more.pop("k", 1)
    settings = {**EXACT, "gradient_accumulation_steps": k, "per_device_train_batch_size": B // k}
    if sam is None:
        settings["cls"] = Trainer
    else:
        settings |= {"sam": sam} if sam == "none" else {"sam": sam, "sam_rho": 0.0}
    trainer = make_trainer(folder, built=model, data=data, **{**settings, **more})
    trainer.train()
    return trainer


def assert_plain(trainer: Any, plain: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(weights(trainer), weights(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
    assert logged(trainer) == pytest.approx(logged(plain), rel=1e-6)


CUTS: list[dict[str, Any]] = [
    {"sam": "msam", "sam_options": {"micro_batches": 4}},
    {"sam": "sam", "sam_accumulation": "micro"},
    {"sam": "bilateral_sam", "sam_options": {"ascent_fraction": 0.99, "rho_min": 0.0}},
]


@pytest.mark.parametrize(
    ("kind", "k"),
    [(kind, 1 + i % 2) for i, kind in enumerate(KINDS)] + [("sum", 2), ("tokens", 2)],
)
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut['sam']}")
def test_at_radius_0_it_is_the_plain_trainer(
    kind: str, k: int, cut: dict[str, Any], tmp_path: Path, caplog: Any
) -> None:
    build, labels = KINDS[kind]
    data = data_of(labels)
    plain = run(tmp_path, build(), data, None, k=k)
    assert_plain(run(tmp_path, build(), data, **cut, k=k), plain)
    assert not caplog.records, "nothing to say where the gradient is exact"


@every_kind
@pytest.mark.parametrize(
    "cut",
    [
        {"sam": "esam", "sam_options": {"gamma": 0.5}},
        {"sam": "bilateral_sam", "sam_options": {"ascent_fraction": 0.5, "rho_min": 0.0}},
    ],
    ids=lambda cut: f"{cut['sam']}",
)
def test_a_part_of_equal_examples_stands_for_the_whole(
    kind: str, cut: dict[str, Any], tmp_path: Path
) -> None:
    """Six times the same example: a half, scaled, has the whole's gradient, of a sum too."""
    build, labels = KINDS[kind]
    data = data_of(labels, 1) * 2 * B

    def each(outputs: Any, labels: Tensor) -> Tensor:
        return torch.arange(len(labels)).double()

    plain = run(tmp_path, build(), data, None)
    more = {"per_example_loss_func": each} if cut["sam"] == "esam" else {}
    assert_plain(run(tmp_path, build(), data, **cut, **more), plain)


# -- what is counted ------------------------------------------------------------------------------


def counting(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss of the user's own that divides by the count, which it must be given."""
    return entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def each_token(outputs: Any, labels: Tensor) -> Tensor:
    scores = outputs["logits"].transpose(1, 2)
    each = functional.cross_entropy(scores, labels, reduction="none")
    return each.sum(1) / labels.ne(-100).sum(1)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("sam", ["msam", "ssam_f", "esam"])
def test_a_loss_that_divides_by_the_count(sam: str, k: int, tmp_path: Path) -> None:
    data = data_of(ragged)
    options = {"ssam_f": {"fisher_samples": 2}, "esam": {"gamma": 0.99}}.get(sam)
    loss = {"compute_loss_func": counting}
    plain = run(tmp_path, Net(entropy), data, None, k=k, **loss)
    own = {"per_example_loss_func": each_token}
    trainer = run(tmp_path, Net(entropy), data, sam, k=k, sam_options=options, **loss, **own)
    assert_plain(trainer, plain)


def test_one_batch_leaves_two_answers_and_the_next_one_tells(tmp_path: Path) -> None:
    """No label is missing in the first update, and the loss is a mean of means, not of tokens."""
    data = data_of(tokens, B) + data_of(ragged, B)
    plain = run(tmp_path, Net(per_token), data, None)
    trainer = run(tmp_path, Net(per_token), data, "msam")
    assert_plain(trainer, plain)
    assert trainer._passes.weighting == Weighting("examples")
    assert run(tmp_path, Net(entropy), data, "msam")._passes.weighting.by == "labels"


def test_dropout_does_not_disturb_the_answer(tmp_path: Path, caplog: Any) -> None:
    model = Net(per_token, nn.Dropout(0.5))
    trainer = run(tmp_path, model, data_of(ragged), "msam")
    assert trainer._passes.weighting == Weighting("examples") and not caplog.records


def test_nothing_is_dropped_in_the_context() -> None:
    x = torch.ones(1, 2, 4, 8)
    with WithoutDropout():
        assert torch.equal(nn.Dropout(0.5)(x), x)
        assert torch.equal(functional.dropout2d(input=x, p=0.5), x)
        for given in ((None, 0.9), ()):
            more = {} if given else {"dropout_p": 0.9}
            found = functional.scaled_dot_product_attention(x, x, x, *given, **more)
            torch.testing.assert_close(found, x)
    assert not torch.equal(nn.Dropout(0.5)(x), x)


def test_questions_leave_no_trace(tmp_path: Path) -> None:
    """The same random numbers and statistics follow: all of a batch is sam bit for bit."""

    def build() -> nn.Module:
        return Net(entropy, nn.Dropout(0.3), nn.BatchNorm1d(8))

    asked, never = (
        run(tmp_path, build(), data_of(classes), "sam", sam_options={"ascent_fraction": fraction})
        for fraction in (0.99, 1.0)
    )
    assert asked._run._measuring._looks and never._run._measuring is None
    for one, other in zip(
        asked.model.state_dict().values(), never.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


# -- where no weighting does ----------------------------------------------------------------------

WEIGHTS = torch.tensor([0.05, 1.0, 5.0]).double()


class Flat(Net):
    """Begins with scores of zero, so that every example has the same loss."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)


class Mixed(Net):
    """Mixes examples with each other at random, as mixup does."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        share = np.random.beta(0.5, 0.5)
        return super().forward(share * x + (1 - share) * x[torch.randperm(len(x))], labels)


SEEN = itertools.count(2)


class Moving(Net):
    """Scales its loss by a number that every forward moves, and that nobody can put back."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found = super().forward(x, labels)
        return {**found, "loss": found["loss"] * next(SEEN)}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: Net(lambda z, y: entropy(z, y, weight=WEIGHTS)), r"make \d\.\d+ of it: no weigh"),
        (lambda: Flat(entropy, nn.BatchNorm1d(8)), "make 1 of it: batch norm couples"),
        (lambda: Net(entropy, nn.BatchNorm1d(8)), r"make \d\.\d+ of it: batch norm"),
        (lambda: Net(lambda z, y: entropy(z, y) + z.std()), r"make \d\.\d+ of it: no weighting"),
        (lambda: Mixed(entropy), r"draws random numbers .* of it, give or take \d\.\d"),
        (lambda: Moving(entropy), "moved by itself from .* to .*cannot be measured"),
    ],
    ids=[
        "class weights",
        "batch norm that the loss does not show",
        "batch norm",
        "coupled",
        "mixup",
        "state",
    ],
)
def test_it_says_why_not_once(model: Any, said: str, tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, model(), data_of(classes), "msam", sam_options={"micro_batches": 2})
    assert len(caplog.records) == 1
    assert re.search(said, caplog.records[0].getMessage())


def contrast(logits: Tensor, labels: Tensor) -> Tensor:
    """Each example against the others of its batch: one alone is always right."""
    one = functional.normalize(logits[:, 0], dim=1)
    return functional.cross_entropy(one @ one.T / 0.1, torch.arange(len(one)))


def standard(logits: Tensor, labels: Tensor) -> Tensor:
    """Scores relative to the batch's: those of one alone are constant, and no gradient."""
    apart = logits - logits.mean(0)
    return entropy(apart / (apart.std(0, correction=0) + 1e-3), labels)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Net(entropy, nn.BatchNorm1d(8)),
        lambda: Net(contrast),
        lambda: Net(standard),
        lambda: Net(lambda z, y: entropy(z, y) + z.std(0).mean()),
    ],
    ids=["an exception", "zero", "a constant", "not a number"],
)
@pytest.mark.parametrize(
    "cut",
    [
        {"sam": "msam", "sam_options": {"micro_batches": B}},
        {"sam": "esam", "sam_options": {"gamma": 0.1}},
        {"sam": "sam", "sam_options": {"ascent_fraction": 0.1}},
    ],
    ids=lambda cut: f"{cut['sam']}",
)
def test_a_part_without_a_loss_of_its_own_is_refused(
    model: Any, cut: dict[str, Any], tmp_path: Path
) -> None:
    def each(outputs: Any, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels))

    built = model()
    before = [p.detach().clone() for p in built.parameters()]
    more = {"per_example_loss_func": each} if cut["sam"] == "esam" else {}
    with pytest.raises(ValueError, match="group of 1 of a batch's 6 .*smallest group .* has 2: "):
        run(tmp_path, built, data_of(classes), **cut, **more)
    assert all(torch.equal(p, b.double()) for p, b in zip(built.parameters(), before, strict=True))
    larger = {"micro_batches": 3} if cut["sam"] == "msam" else {"ascent_fraction": 0.3}
    if cut["sam"] != "esam":
        run(tmp_path, model(), data_of(classes), cut["sam"], sam_options=larger)


def test_clip_in_groups_of_one_is_refused(tmp_path: Path) -> None:
    """It would train nothing and log a loss of 0."""
    set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 20, "intermediate_size": 8, "eos_token_id": 19}
    image = {**size, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=4))
    draw = torch.Generator().manual_seed(0)
    data = [
        {
            "input_ids": torch.cat([
                torch.randint(0, 19, (4,), generator=draw),
                torch.tensor([19]),
            ]),
            "pixel_values": torch.randn(3, 8, 8, generator=draw),
        }
        for _ in range(8)
    ]

    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Any]:
        stacked = {k: torch.stack([e[k] for e in examples]) for k in examples[0]}
        return {**stacked, "return_loss": True}

    common = {"data": data, "collator": collate, "remove_unused_columns": False, "max_steps": 1}
    common |= {"sam": "msam", "per_device_train_batch_size": 4}
    with pytest.raises(ValueError, match="group of 1 of a batch's 4 .* smallest .* has 2"):
        make_trainer(tmp_path, built=model, **common).train()
    make_trainer(tmp_path, built=model, sam_options="micro_batches=2", **common).train()


# -- without labels -------------------------------------------------------------------------------


def missing(labels: Callable[[torch.Generator], Tensor], *which: int) -> list[dict[str, Any]]:
    data = data_of(labels)
    for i in which:
        data[i]["labels"] = torch.full_like(data[i]["labels"], -100)
    return data


@pytest.mark.parametrize("labels", [classes, ragged])
@pytest.mark.parametrize(
    "cut",
    [*CUTS, {"sam": "sam", "sam_options": {"ascent_fraction": 0.1}}],
    ids=lambda cut: f"{cut['sam']}",
)
def test_a_group_without_labels_counts_nothing(
    labels: Any, cut: dict[str, Any], tmp_path: Path
) -> None:
    """The first example, which is all of the ascent's, and both of a group have none."""
    data = missing(labels, 0, 2, 3)
    plain = run(tmp_path, Net(entropy), data, None)
    six = {**cut, "sam_options": {"micro_batches": 6}} if cut["sam"] == "msam" else cut
    trainer = run(tmp_path, Net(entropy), data, **six)
    if cut.get("sam_options") == {"ascent_fraction": 0.1}:
        assert all(map(torch.isfinite, map(torch.sum, weights(trainer))))
        assert logged(trainer)[0] > 0.1, "the loss of an example that has a label"
    else:
        assert_plain(trainer, plain)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut['sam']}")
@pytest.mark.parametrize("build", [lambda: Net(entropy), "llama"])
def test_a_batch_without_labels_is_not_a_number_in_the_log(
    build: Any, cut: dict[str, Any], tmp_path: Path
) -> None:
    data = missing(ragged, *range(B, 2 * B))
    if build == "llama":
        data = [{"input_ids": torch.arange(1, T + 1), "labels": e["labels"]} for e in data]
    for sam in ({"sam": None}, cut):
        trainer = run(tmp_path, llama() if build == "llama" else build(), data, **sam)
        first, second = logged(trainer)
        assert first > 0.1 and math.isnan(second)


# -- the losses of single examples ----------------------------------------------------------------


def gpt2() -> nn.Module:
    set_seed(0)
    size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, bos_token_id=1, eos_token_id=2, **size))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (gpt2, lambda: [{"input_ids": t, "labels": t} for t in map(tokens, [draws()] * 12)]),
        (lambda: Net(lambda z, y: entropy(z, y, weight=WEIGHTS)), lambda: data_of(tokens)),
        (lambda: Net(lambda z, y: 2 * entropy(z, y)), lambda: data_of(tokens)),
        (lambda: Net(lambda z, y: entropy(z[:, :3], y)), lambda: data_of(lambda d: tokens(d)[:3])),
        (lambda: Net(lambda z, y: entropy(z[:, 1:], y)), lambda: data_of(lambda d: tokens(d)[1:])),
    ],
    ids=["a shift of its own", "class weights", "twice", "fewer labels", "prompt tuning"],
)
def test_losses_that_are_not_the_loss_are_refused(model: Any, data: Any, tmp_path: Path) -> None:
    built = model()
    before = [p.detach().clone() for p in built.parameters()]
    with pytest.raises(ValueError, match="loss(es)? of single examples.*per_example_loss_func=f"):
        run(tmp_path, built, data(), "esam")
    assert all(torch.equal(p, b.double()) for p, b in zip(built.parameters(), before, strict=True))


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_your_own_losses_that_are_not_the_loss_are_said_to_be(tmp_path: Path, caplog: Any) -> None:
    def twice(outputs: Any, labels: Tensor) -> Tensor:
        return 2 * each_token(outputs, labels)

    run(tmp_path, Net(entropy), data_of(tokens), "esam", per_example_loss_func=twice)
    assert len(caplog.records) == 1
    assert "not the mean of what per_example_loss_func returns" in caplog.records[0].getMessage()


class Wordless(nn.Module):
    """Takes neither labels nor anything else by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(T, 2)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": functional.cross_entropy(logits, target), "logits": logits}


def test_without_labels_the_function_gets_the_inputs(tmp_path: Path) -> None:
    data = [{"x": e["x"], "target": e["labels"] % 2} for e in data_of(classes)]

    def each(outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        assert set(inputs) == {"x", "target"}
        scores = outputs["logits"]
        return functional.cross_entropy(scores, inputs["target"], reduction="none")

    with pytest.raises(ValueError, match="Wordless takes no labels: .*per_example_loss_func"):
        run(tmp_path, Wordless(), data, "esam")
    names = {"label_names": ["target"]}
    with pytest.raises(ValueError, match="Wordless takes target: .*per_example_loss_func"):
        run(tmp_path, Wordless(), data, "esam", **names)
    run(tmp_path, Wordless(), data, "esam", per_example_loss_func=each, **names)


# -- the rule -------------------------------------------------------------------------------------


def test_the_likeliest_weighting_comes_first() -> None:
    def first(labels: Any, **more: Any) -> str:
        given = {"counted": False, "shifted": False, "config": None, **more}
        return candidates({"labels": labels}, **given)[0].by

    assert first(torch.ones(3, 4)) == "examples" and first(torch.ones(3, 4), counted=True) == (
        "labels"
    )
    assert first(torch.ones(3, dtype=torch.long)) == "labels"
    assert first(torch.ones(3, 4, dtype=torch.long), shifted=True) == "targets"
    assert first([{"boxes": torch.ones(2, 4)}]) == first(None) == "examples"


def test_the_rule_of_a_sum_and_of_a_mean() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])
    batch = {"labels": torch.tensor([[1, 2], [3, -100], [-100, -100]])}
    assert float(Weighting("labels").loss_of(batch, losses)) == pytest.approx(4 / 3)
    assert float(Weighting("examples").loss_of(batch, losses)) == 3.0
    assert float(Weighting("examples", summed=True).loss_of(batch, losses)) == 9.0
    assert Weighting("examples", summed=True).scale(2, 6) == 3.0
    assert Weighting("labels").scale(2, 6) == 1.0


def test_a_sum_counts_in_full_and_stands_for_the_whole_when_scaled() -> None:
    """Groups of three of six have half the share and the weight of a sum; halves are scaled."""
    ops = TrainerOps(Weighting("examples", summed=True))
    data = Data([Batch({"x": torch.ones(6, 2)})], [1.0], ops)
    assert [group.weights for group in data.groups(2)] == [[1.0], [1.0]]
    assert [group.shares for group in data.groups(2)] == [[0.5], [0.5]]
    assert data.beginnings(0.5).weights == [2.0]
    first = data.groups(2)[0].over(0.5)
    assert first.weights == [2.0] and first.beginnings(0.3).weights == [6.0]
    assert float(data.loss_of([torch.ones(6)])) == 6.0


def test_a_beginning_has_an_example_that_counts() -> None:
    labels = torch.tensor([-100, -100, 1, 0, 1, 1])
    data = Data([Batch({"labels": labels})], [1.0], TrainerOps(Weighting("labels")))
    cut = data.beginnings(0.1)
    assert cut.batches[0].inputs["labels"].tolist() == [-100, -100, 1]
    assert float(cut.share) == 1.0


def test_labels_are_filled_in_only_where_there_are_none() -> None:
    by_labels, none = Weighting("labels"), torch.full((2, 3), -100)
    assert by_labels.filled({"labels": none})["labels"].tolist() == [[0] * 3] * 2
    some = {"labels": torch.tensor([[1, -100]])}
    assert torch.equal(by_labels.filled(some)["labels"], some["labels"])
    assert Weighting("targets").filled({"labels": torch.tensor([[1, -100]])})["labels"].sum() == 0
    assert Weighting("examples").filled({"labels": none})["labels"] is none


class Balanced(Net):
    """Counts items, and adds a loss that does not, as a mixture of experts does."""

    def forward(
        self, x: Tensor, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        found = super().forward(x, labels)
        loss = found["loss"] / (num_items_in_batch or labels.ne(-100).sum())
        return {**found, "loss": loss + found["logits"].square().mean()}


@pytest.mark.parametrize("cut", CUTS[:2], ids=lambda cut: f"{cut['sam']}")
def test_an_auxiliary_loss_is_named(cut: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
    model = Balanced(lambda z, y: entropy(z, y, reduction="sum"))
    run(tmp_path, model, data_of(ragged), **cut, k=2)
    messages = [record.getMessage() for record in caplog.records]
    assert re.search(r"in part only \(0\.\d+ of it\), as with an auxiliary loss", messages[0])
    assert len(messages) == (2 if cut["sam"] == "msam" else 1)


def test_an_answer_that_the_models_state_gives_is_none(tmp_path: Path, caplog: Any) -> None:
    """Of a loss that moves by itself nobody can tell whether it honours the count of items."""

    class Counted(Moving):
        def forward(self, x: Tensor, labels: Any = None, **kwargs: Any) -> dict[str, Tensor]:
            return super().forward(x, labels)

    trainer = run(tmp_path, Counted(entropy), data_of(classes), "sam", k=2)
    assert trainer._passes.honours is not True


def test_bert_asks_for_items_that_it_does_not_use(tmp_path: Path) -> None:
    data = [{"input_ids": torch.arange(1, 8), "labels": i % 2} for i in range(8)]
    trainer = run(tmp_path, bert(), data, "msam", per_device_train_batch_size=4)
    assert trainer._passes.weighting.by == "labels"
