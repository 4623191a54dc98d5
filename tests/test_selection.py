# SPDX-License-Identifier: Apache-2.0
"""Methods that choose or group examples, or cut weights, inside Trainer: mSAM, ESAM, Sparse SAM."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from hf_sam import (
    ESAM,
    METHODS,
    SAM,
    FriendlySAM,
    LookSAM,
    PerGroup,
    SAMTrainer,
    SparseSAMDynamic,
)
from hf_sam.engine.accelerated import AcceleratedEngine
from hf_sam.methods import asks
from hf_sam.methods.base import Perturbing
from tests.toys import (
    MODELS,
    assert_equal,
    assert_same,
    bert,
    examples,
    llama,
    logged,
    make_trainer,
    train,
    weights,
)


def thorough(*values: Any) -> Any:
    """A row of a parametrisation that runs with `-m slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 0.1}
EXACT = {"dtype": torch.float64, **SGD}


class Forwards:
    """Counts a model's forwards: (examples, whether a gradient will be asked for)."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.seen: list[tuple[int, bool]] = []
        network.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        first = next(v for v in inputs.values() if torch.is_tensor(v))
        self.seen.append((len(first), torch.is_grad_enabled()))


def collated(model: str, n: int, seed: int = 1) -> dict[str, Tensor]:
    """The examples of a toy as one batch."""
    return default_data_collator(examples(model, n, seed))


def rows(batch: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {k: v[index] for k, v in batch.items()}


def gradient(network: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    network.zero_grad()
    loss().backward()
    return [p.grad.clone() for p in network.parameters()]


def step_aside(network: nn.Module, along: list[Tensor], rho: float) -> list[Tensor]:
    """Move the weights by rho along a direction; return them as they were."""
    before = [p.detach().clone() for p in network.parameters()]
    length = math.sqrt(sum(float(g.square().sum()) for g in along))
    with torch.no_grad():
        for p, g in zip(network.parameters(), along, strict=True):
            p += rho / length * g
    return before


def put_back(network: nn.Module, before: list[Tensor]) -> None:
    with torch.no_grad():
        for p, b in zip(network.parameters(), before, strict=True):
            p.copy_(b)


def one_update(folder: Path, model: str, n: int = 12, **more: Any) -> list[Tensor]:
    """The gradient of a trainer's first update on n examples, from its SGD step."""
    before = [p.detach().clone().double() for p in MODELS[model]().parameters()]
    data = examples(model, n)
    settings = {"data": data, "per_device_train_batch_size": n, "max_steps": 1, **EXACT, **more}
    trainer = train(folder, model=model, train_sampling_strategy="sequential", **settings)
    return [(b - p) / 0.1 for p, b in zip(weights(trainer), before, strict=True)]


# -- mSAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "accumulation"),
    [("bert", 2), ("resnet", 1), thorough("llama", 2), thorough("bert", 1), thorough("resnet", 2)],
)
def test_one_group_is_sam(model: str, accumulation: int, tmp_path: Path) -> None:
    common = {"model": model, "dropout": 0.1, "gradient_accumulation_steps": accumulation}
    common |= {"max_steps": 3, "per_device_train_batch_size": 4}
    one = train(tmp_path, sam="msam", sam_options="micro_batches=1", **common)
    sam = train(tmp_path, sam="sam", **common)
    assert_equal(weights(one), weights(sam))
    assert logged(one, "sam/sharpness") == logged(sam, "sam/sharpness")


def mean_loss(network: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    return lambda: network(**batch).loss


@pytest.mark.parametrize("model", ["bert", "llama", thorough("t5")])
@pytest.mark.parametrize("groups", [thorough(2), 5])
def test_it_is_its_formula(model: str, groups: int, tmp_path: Path) -> None:
    """Each group by itself, weighted by examples, or by labelled tokens where labels are ragged."""
    found = one_update(tmp_path, model, sam="msam", sam_options={"micro_batches": groups})
    network, batch = MODELS[model]().double(), collated(model, 12)
    labels = batch["labels"][:, 1:] if model == "llama" else batch["labels"]
    heavy = labels.ne(-100).view(12, -1).sum(1).double()
    expected = [torch.zeros_like(p) for p in network.parameters()]
    for g in range(groups):
        index = slice(12 * g // groups, 12 * (g + 1) // groups)
        loss = mean_loss(network, rows(batch, index))
        before = step_aside(network, gradient(network, loss), 0.05)
        for total, there in zip(expected, gradient(network, loss), strict=True):
            total += there * heavy[index].sum() / heavy.sum()
        put_back(network, before)
    # Language models compute their loss in float32.
    assert_equal(found, expected, 1e-12 if model == "bert" else 1e-6)


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ("bert", 5),
        ("llama", 4),
        *(thorough(m, g) for m, g in [("bert", 2), ("bert", 4), ("llama", 2), ("llama", 5)]),
    ],
)
def test_groups_do_not_depend_on_accumulation(model: str, groups: int, tmp_path: Path) -> None:
    """Twelve examples as one, two or three micro-batches, which the groups cut across."""
    common = {"model": model, "data": examples(model, 36), "max_steps": 3, **EXACT}
    common |= {"sam": "msam", "sam_options": {"micro_batches": groups}}
    runs = [
        train(
            tmp_path,
            per_device_train_batch_size=12 // k,
            gradient_accumulation_steps=k,
            **common,
        )
        for k in (1, 2, 3)
    ]
    for other in runs[1:]:
        assert_equal(weights(runs[0]), weights(other), 1e-12 if model == "bert" else 1e-7)
        assert logged(runs[0]) == pytest.approx(logged(other), rel=1e-5)
        for key in ("sam/perturbation_norm", "sam/sharpness", "sam/ascent_grad_norm"):
            assert logged(runs[0], key) == pytest.approx(logged(other, key), rel=1e-4)


@pytest.mark.parametrize("model", ["bert", "llama", thorough("resnet")])
def test_micro_is_msam_with_a_group_per_micro_batch(model: str, tmp_path: Path) -> None:
    common = {"model": model, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    common |= {"max_steps": 3, **EXACT}
    micro = train(tmp_path, sam="sam", sam_accumulation="micro", **common)
    groups = train(tmp_path, sam="msam", sam_options="micro_batches=3", **common)
    window = train(tmp_path, sam="sam", **common)
    assert_equal(weights(micro), weights(groups))
    assert not torch.allclose(weights(micro)[0], weights(window)[0], atol=1e-9)


def test_a_group_without_labels_counts_nothing(tmp_path: Path) -> None:
    """Of three groups, one has no labelled token: the update is that of the two others."""
    data = examples("llama", 12)
    for example in data[4:8]:
        example["labels"] = torch.full_like(example["labels"], -100)
    common = {
        "model": "llama",
        "max_steps": 1,
        "sam": "msam",
        "train_sampling_strategy": "sequential",
    }
    three = train(
        tmp_path,
        data=data,
        per_device_train_batch_size=12,
        sam_options="micro_batches=3",
        **common,
        **EXACT,
    )
    two = train(
        tmp_path,
        data=data[:4] + data[8:],
        per_device_train_batch_size=8,
        sam_options="micro_batches=2",
        **common,
        **EXACT,
    )
    assert_equal(weights(three), weights(two), 1e-7)
    assert logged(three) == pytest.approx(logged(two), rel=1e-5)


@pytest.mark.parametrize(
    "method", [FriendlySAM(), LookSAM(), SparseSAMDynamic(), PerGroup(2, SAM())]
)
def test_state_in_groups_is_refused_when_they_are_made(method: Any) -> None:
    if method.keeps_state:
        with pytest.raises(ValueError, match="carries state.*sam_accumulation='window'"):
            PerGroup(4, method)
    else:
        assert asks(PerGroup(4, method), 3).groups == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sam": "msam"}, "perturbs 4 groups .* 4 on each of 1 ranks, cut from 2 micro-batches"),
        ({"sam": "asam", "sam_accumulation": "micro"}, "PerGroup perturbs 2 groups"),
        ({"sam": "msam", "sam_when": "every:2"}, "When perturbs 4 groups"),
        ({"sam": "msam", "sam_options": "micro_batches=1"}, None),
        ({"sam": "sam"}, None),
    ],
)
def test_the_log_says_how_many_groups(
    settings: Any, said: str | None, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "hf_sam")
    train(tmp_path, max_steps=2, gradient_accumulation_steps=2, **settings)
    found = [r.getMessage() for r in caplog.records if "groups of an update" in r.getMessage()]
    assert len(found) == (said is not None)
    if said:
        assert re.search(said, found[0])


# -- ESAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bert", "lora", thorough("t5")])
def test_other_weight_gradients_are_not_computed(
    model: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """In the ascent, `.grad` of all that is not chosen is None; the choice changes."""
    seen: list[list[bool]] = []
    take = AcceleratedEngine.take_grads

    def spy(self: Any, params: Any) -> Any:
        seen.append([p.grad is not None for p in params])
        return take(self, params)

    monkeypatch.setattr(AcceleratedEngine, "take_grads", spy)
    trainer = train(tmp_path, model=model, sam="esam", max_steps=4)
    ascents, descents = seen[::2], seen[1::2]
    assert len(ascents) == 4 and all(all(d) for d in descents)
    method = ESAM()
    for step, found in enumerate(ascents):
        toss = torch.rand(len(found), generator=generator_of(3, step), dtype=torch.float64)
        assert found == (toss < method.beta).tolist()
        assert 0 < sum(found) < len(found)
    assert len({tuple(a) for a in ascents}) == 4
    assert logged(trainer, "sam/perturbation_norm") == pytest.approx([0.05 / 0.6] * 4, rel=1e-5)


def generator_of(seed: int, step: int) -> torch.Generator:
    from hf_sam import Landscape, Progress

    return Landscape([], [], None, seed=seed, progress=Progress(step)).generator  # type: ignore[arg-type]


def flops(folder: Path, **settings: Any) -> int:
    """What the matrix products of a few updates cost, after the first, in which questions are
    asked."""

    def of(steps: int) -> int:
        more = {"max_steps": steps, "lr_scheduler_type": "constant", "logging_steps": 100}
        trainer = make_trainer(folder, **more, **settings)
        with FlopCounterMode(display=False) as counter:
            trainer.train()
        return counter.get_total_flops()

    return of(9) - of(1)


def test_it_saves_work(tmp_path: Path) -> None:
    """As its page says: beta saves weight gradients, gamma the second pass; 1.7 times plain."""
    plain = flops(tmp_path, sam="none")
    cost = {
        (beta, gamma): flops(tmp_path, sam="esam", sam_options={"beta": beta, "gamma": gamma})
        / plain
        for beta, gamma in [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5), (0.6, 0.5)]
    }
    assert cost[1.0, 1.0] == pytest.approx(2.0, abs=1e-6), "as sam"
    assert cost[0.3, 1.0] == pytest.approx(2 - 0.7 / 3, abs=0.1)
    assert cost[1.0, 0.5] == pytest.approx(2 + 1 / 3 - 0.5, abs=0.03), "one forward for one half"
    assert 1.55 < cost[0.6, 0.5] < 1.75


@pytest.mark.parametrize("gamma", [0.5, thorough(1.0)])
def test_under_activation_checkpointing(gamma: float, tmp_path: Path) -> None:
    """The reentrant mode would leave gradients out: there the whole backward runs instead."""
    from tests.test_trainer import CHECKPOINTING

    common = {"dropout": 0.1, "max_steps": 3, "sam": "esam", "sam_options": {"gamma": gamma}}
    common |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    none = train(tmp_path, **common)
    for reentrant in (True, False):
        mode = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
        assert_equal(weights(none), weights(train(tmp_path, **common, **mode)), 1e-6)


@pytest.mark.parametrize(
    ("gamma", "kept", "accumulation"),
    [
        (0.5, 3, 3),
        (0.61, 4, 1),
        (0.01, 1, 1),
        (1.0, 5, 3),
        *(thorough(g, n, 3) for g, n in [(0.6, 3), (0.2, 1), (0.999, 5)]),
    ],
)
def test_its_forwards(gamma: float, kept: int, accumulation: int, tmp_path: Path) -> None:
    """1 with a graph, 1 without, 1 on ceil(gamma B) of each micro-batch; gamma = 1: no extra."""
    network = Forwards(bert(dropout=0.1))
    train(
        tmp_path,
        built=network.network,
        max_steps=2,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=accumulation,
        data=examples("bert", 30),
        sam="esam",
        sam_options={"gamma": gamma},
    )
    k = accumulation
    if gamma == 1.0:
        update = [(5, True)] * k + [(5, True)] * k
    else:
        update = [(5, True)] * k + [(5, False)] * k + [(kept, True)] * k
    asked = network.seen[: -2 * len(update)]  # before the first update, without a graph
    assert network.seen[-2 * len(update) :] == update * 2
    assert not any(graph for _, graph in asked) and {n for n, _ in asked} <= {1, 2, 3, 5}


@pytest.mark.parametrize(
    ("model", "smoothing"),
    [
        ("bert", 0.0),
        ("llama", 0.2),
        ("t5", 0.2),
        *(thorough(m, x) for m, x in [("bert", 0.2), ("llama", 0.0), ("t5", 0.0)]),
    ],
)
def test_it_is_the_gradient_of_the_sharpest(model: str, smoothing: float, tmp_path: Path) -> None:
    """With all tensors; from the losses of batches of one before and after, and their mean."""
    more = {"label_smoothing_factor": smoothing} if smoothing else {}
    data = examples(model, 8)
    if model == "t5":
        data = [{**e, "decoder_input_ids": e["labels"].roll(1)} for e in data]
    options = {"beta": 1.0, "gamma": 0.4}
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "data": data, **EXACT, **more}
    trainer = train(tmp_path, model=model, sam="esam", sam_options=options, **settings)
    network = MODELS[model]().double()
    probe = make_trainer(tmp_path, built=network, sam="none", **settings)
    batch = {
        k: v.double() if v.is_floating_point() else v
        for k, v in default_data_collator(data).items()
    }

    def loss(index: Any = slice(None)) -> Tensor:
        return probe.compute_loss(network, rows(batch, index))

    def singly() -> Tensor:
        with torch.no_grad():
            return torch.stack([loss(slice(i, i + 1)) for i in range(8)])

    here = singly()
    before = step_aside(network, gradient(network, loss), 0.05)
    chosen = (singly() - here).topk(4).indices.sort().values  # ceil(0.4 * 8)
    there = gradient(network, lambda: loss(chosen))
    put_back(network, before)
    expected = [b - 0.1 * g for b, g in zip(before, there, strict=True)]
    assert_equal(weights(trainer), expected, 1e-12 if model == "bert" else 1e-6)


def test_the_logged_sharpness_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    common = {"max_steps": 1, **EXACT}
    esam = train(tmp_path, sam="esam", sam_options={"beta": 1.0, "gamma": 0.5}, **common)
    whole = train(tmp_path, sam="esam", sam_options={"beta": 1.0, "gamma": 1.0}, **common)
    sam = train(tmp_path, sam="sam", **common)
    values = [logged(t, "sam/sharpness")[0] for t in (esam, whole, sam)]
    assert values == pytest.approx([values[2]] * 3, rel=1e-5)


TEXTS: list[list[str]] = []


class Nested(nn.Module):
    """Takes its inputs in a dict inside the batch, and a field that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()
        self.config = self.inner.config

    def forward(self, text: dict[str, Tensor], names: list[str], labels: Tensor) -> Any:
        assert len(names) == len(labels) == len(text["input_ids"]) == len(text["pair"][1])
        TEXTS.append(names)  # what the model itself noted in a later pass would be put back
        return self.inner(input_ids=text["input_ids"], labels=labels)


def nest(data: list[dict[str, Any]]) -> dict[str, Any]:
    batch = default_data_collator([{k: v for k, v in e.items() if k != "name"} for e in data])
    ids = batch["input_ids"]
    return {
        "text": {"input_ids": ids, "pair": (None, ids)},
        "names": [f"{e['input_ids'].tolist()}" for e in data],
        "labels": batch["labels"],
    }


def collating(collate: Any, **settings: Any) -> Any:
    trainer = make_trainer(**settings)
    trainer.data_collator = collate
    trainer.args.remove_unused_columns = False
    return trainer


@pytest.mark.parametrize("key", ["esam", "msam", thorough("ssam_f")])
def test_nested_batches(key: str, tmp_path: Path) -> None:
    """Each field is cut where it lies; the result is that of the flat batch."""
    options = {"ssam_f": {"fisher_samples": 3}}.get(key)
    common = {"folder": tmp_path, "max_steps": 3, "sam": key, "sam_options": options, **EXACT}
    network = Nested()
    nested = collating(nest, built=network, **common)
    nested.train()
    flat = train(tmp_path, **{k: v for k, v in common.items() if k != "folder"})
    assert_equal(weights(nested), weights(flat))
    assert {len(names) for names in TEXTS[-8:]} == {
        "esam": {8, 4},
        "msam": {2},
        "ssam_f": {8},
    }[key]


def positions(data: list[dict[str, Any]]) -> dict[str, Any]:
    """A field that all examples share."""
    return {**default_data_collator(data), "position_ids": torch.arange(10)[None]}


class Taking(SAMTrainer):
    """Knows its own batches."""

    def take(self, inputs: dict[str, Any], index: Any) -> dict[str, Any]:
        return {k: v if k == "position_ids" else v[index] for k, v in inputs.items()}


@pytest.mark.parametrize("key", ["esam", thorough("msam")])
def test_a_field_of_all_examples_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    settings = {"folder": tmp_path, "max_steps": 2, **EXACT}
    with pytest.raises(ValueError, match=r"field 'position_ids' \(shape \(1, 10\)\) .*take"):
        collating(positions, sam=key, **settings).train()
    collating(positions, sam="sam", sam_accumulation="micro", **settings).train()
    taking = collating(positions, cls=Taking, sam=key, **settings)
    taking.train()
    del settings["folder"]
    assert_equal(weights(taking), weights(train(tmp_path, sam=key, **settings)))


class OwnLoss(SAMTrainer):
    """Rows of a batch need not be examples here."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = 2 * outputs.loss
        return (loss, outputs) if return_outputs else loss


class TakingOwnLoss(OwnLoss, Taking):
    """And one that knows how to cut them."""


class AddedLoss(OwnLoss):
    """The same from what the classes behind compute."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
    ) -> Any:
        loss, outputs = SAMTrainer.compute_loss(self, model, inputs, return_outputs=True, **more)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class TakingAddedLoss(AddedLoss, Taking):
    """And that one."""


CUTTING = [
    {"sam": "esam"},
    {"sam": "msam", "sam_when": "every:2"},
    {"sam": "sam", "sam_options": "ascent_fraction=0.5"},
]


@pytest.mark.parametrize("settings", CUTTING, ids=str)
def test_a_loss_of_the_class_is_cut_only_by_those_who_know_how(
    settings: Any, tmp_path: Path
) -> None:
    """Shares scale whatever loss the class computes; single losses need the class behind."""
    common = {"max_steps": 2, **EXACT}
    for cls in (OwnLoss, AddedLoss):
        with pytest.raises(NotImplementedError, match=r"Loss.compute_loss .*take\(inputs, index\)"):
            train(tmp_path, cls=cls, **settings, **common)
    twice = train(tmp_path, **settings, **{**common, "learning_rate": 0.2})
    for cls in (TakingOwnLoss, TakingAddedLoss):
        if settings["sam"] == "esam" and cls is TakingOwnLoss:
            with pytest.raises(ValueError, match="does not call super"):
                train(tmp_path, cls=cls, **settings, **common)
            continue
        if settings["sam"] == "esam":
            with pytest.raises(ValueError, match="make a loss of 0.69.*per_example_loss_func"):
                train(tmp_path, cls=cls, **settings, **common)
            more = {"per_example_loss_func": twice_each}
        else:
            more = {}
        trainer = train(tmp_path, cls=cls, **settings, **common, **more)
        assert_equal(weights(trainer), weights(twice), 1e-12)


def twice_each(outputs: Any, labels: Tensor) -> Tensor:
    return 2 * nn.functional.cross_entropy(outputs.logits, labels, reduction="none")


class Lossless(nn.Module):
    """Returns no loss: that is the trainer's business."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()
        self.config = self.inner.config

    def forward(self, input_ids: Tensor) -> Any:
        return self.inner(input_ids=input_ids)


class LossOfLogits(SAMTrainer):
    """Computes the loss from what the model returns."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def test_drawn_examples_have_the_loss_of_the_class(tmp_path: Path) -> None:
    common = {"max_steps": 2, "sam": "ssam_f", "sam_options": {"fisher_samples": 3}, **EXACT}
    own = make_trainer(tmp_path, cls=LossOfLogits, built=Lossless(), **common)
    own.args.remove_unused_columns = False
    own.train()
    assert_equal(weights(own), weights(train(tmp_path, **common)), 1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"sam": "sam"},
        {"sam": "sam", "sam_accumulation": "micro"},
        {"sam": "esam", "sam_options": "gamma=1"},
        {"sam": "msam", "sam_options": "micro_batches=1"},
        {"sam": "ssam_d"},
    ],
    ids=str,
)
def test_what_cuts_nothing_takes_any_trainer(settings: Any, tmp_path: Path) -> None:
    trainer = train(tmp_path, cls=OwnLoss, max_steps=2, gradient_accumulation_steps=2, **settings)
    assert logged(trainer, "sam/share_perturbed_updates") == [1.0, 1.0]


# -- Sparse SAM -----------------------------------------------------------------------------------

SPARSE: list[dict[str, Any]] = [
    {"sam": "ssam_f", "sam_options": {"fisher_samples": 3, "update_interval": 2}},
    {
        "sam": "ssam_f",
        "sam_options": {"fisher_samples": 3, "update_interval": 2, "pattern": "structured"},
    },
    {"sam": "ssam_d", "sam_options": {"update_interval": 2}},
]


def changed(settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**settings, "sam_options": {**settings["sam_options"], **options}}


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        (SPARSE[0], "resnet"),
        (SPARSE[1], "bert"),
        (SPARSE[2], "bert"),
        *(
            thorough(SPARSE[i], model)
            for i, model in [(0, "bert"), (1, "resnet"), (2, "resnet"), (0, "llama"), (2, "llama")]
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value["sam"],
)
def test_new_masks_leave_no_trace(settings: Any, model: str, tmp_path: Path) -> None:
    """With rho = 0 it is the plain Trainer bit for bit: statistics, dropout stream, data order."""
    common = {"model": model, "dropout": 0.1, "max_steps": 7, "gradient_accumulation_steps": 2}
    common |= {"per_device_train_batch_size": 4}
    plain = train(tmp_path, sam="none", **common)
    state = torch.get_rng_state()
    sparse = train(tmp_path, sam_rho=0.0, **settings, **common)
    assert torch.equal(state, torch.get_rng_state())
    assert sparse._method.state_dict()["renewed"] == 6
    assert_equal(weights(sparse), weights(plain))
    assert_equal(list(sparse.model.buffers()), list(plain.model.buffers()))
    assert_same(sparse.optimizer.state_dict(), plain.optimizer.state_dict())


@pytest.mark.parametrize(
    "settings", [SPARSE[0], thorough(SPARSE[1]), SPARSE[2]], ids=["fisher", "structured", "dynamic"]
)
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_no_sparsity_is_sam_and_nothing_but_is_plain(
    settings: Any, sparsity: float, tmp_path: Path
) -> None:
    common = {"model": "resnet", "max_steps": 5}
    sparse = train(tmp_path, **changed(settings, sparsity=sparsity), **common)
    same = train(tmp_path, sam="none" if sparsity else "sam", **common)
    assert_equal(weights(sparse), weights(same))
    assert_equal(list(sparse.model.buffers()), list(same.model.buffers()))


@pytest.mark.parametrize(
    ("key", "sparsity"),
    [
        ("ssam_f", 0.8),
        ("ssam_d", 0.2),
        *(thorough(key, s) for key in ("ssam_f", "ssam_d") for s in (0.5, 0.9)),
    ],
)
def test_the_live_count(key: str, sparsity: float, tmp_path: Path) -> None:
    """Exactly N - ceil(sparsity N) after several renewals, from the first update on."""
    options = {"sparsity": sparsity, "update_interval": 1}
    options |= {"fisher_samples": 2} if key == "ssam_f" else {"drop_rate": 0.9}
    for steps in (1, 5):
        trainer = train(tmp_path, sam=key, sam_options=options, max_steps=steps)
        mask = trainer._method.state_dict()["mask"]
        n = sum(p.numel() for p in trainer.model.parameters())
        assert sum(int(m.sum()) for m in mask) == n - math.ceil(sparsity * n - 1e-6)
        assert 0 < logged(trainer, "sam/perturbation_norm")[0] < 0.05


def test_drawn_examples_go_through_the_collator(tmp_path: Path) -> None:
    """Ragged examples, which only a padding collator makes into batches."""
    data = [{"input_ids": [5] * n, "labels": [n % 3] * n} for n in range(2, 26)]
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import BertConfig, BertForTokenClassification

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0, "a": 5}, unk_token="a")),
        pad_token="[PAD]",
    )
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = Forwards(
        BertForTokenClassification(BertConfig(**sizes, intermediate_size=8, num_labels=3))
    )
    trainer = collating(
        DataCollatorForTokenClassification(tokenizer),
        folder=tmp_path,
        built=network.network,
        data=data,
        max_steps=2,
        sam="ssam_f",
        sam_options={"fisher_samples": 3, "update_interval": 1},
    )
    trainer.train()
    assert [n for n, _ in network.seen] == [1, 1, 1, 8, 8] * 2  # the mask comes first


class Stream(IterableDataset):
    def __iter__(self) -> Iterable[Any]:
        return iter(examples("bert", 32))


def test_an_iterable_dataset_cannot_be_drawn_from(tmp_path: Path) -> None:
    """Refused before the first update; the dynamic mask draws nothing."""
    network = Forwards(bert())
    settings = {"built": network.network, "data": Stream(), "max_steps": 2}
    with pytest.raises(ValueError, match="SparseSAMFisher draws training examples.*ssam_d"):
        train(tmp_path, sam="ssam_f", **settings)
    assert not network.seen
    train(tmp_path, sam="ssam_d", **settings)


# -- the ascent on a part of the batch ------------------------------------------------------------

PERTURBING = [k for k, kind in METHODS.items() if issubclass(kind, Perturbing)]
OPTIONS: dict[str, dict[str, Any]] = {
    "ssam_f": {"fisher_samples": 2},
    "ss_sam": {"schedule": "constant", "p_start": 1.0},
    "late_sam": {"start": 0.0},
    "looksam": {"k": 1},
}


def test_every_method_with_an_ascent_of_its_own_has_it() -> None:
    """Methods of one pass have none; of the others, these do not take `ascent_fraction`."""
    several = {key for key, kind in METHODS.items() if asks(kind()).passes > 1}
    assert several - set(PERTURBING) == {"ae_sam", "esam", "functional_sam", "tail_sam"}


@pytest.mark.parametrize("key", PERTURBING)
@pytest.mark.parametrize(("size", "part"), [(8, 2), thorough(5, 2)])
def test_a_fraction_of_the_batch(key: str, size: int, part: int, tmp_path: Path) -> None:
    """ceil(f B) examples of each micro-batch in the ascent, all in the other passes."""
    network = Forwards(bert())
    options = ",".join(f"{k}={v}" for k, v in OPTIONS.get(key, {}).items())
    trainer = train(
        tmp_path,
        built=network.network,
        max_steps=2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=2,
        data=examples("bert", 4 * size),
        sam=key,
        sam_options=f"ascent_fraction=0.25,{options}".strip(","),
    )
    seen = [one for one in network.seen if one[1]]  # the loss is asked without a graph
    update = [part] * 2 + [size] * 2
    both = update * 2
    if key == "ssam_f":  # two examples for the first mask, which lasts an epoch
        both = [1] * 2 + update * 2
    if key == "bilateral_sam":
        both = (update + [size] * 2) * 2
    if key == "msam":  # four groups, which each lie in one micro-batch
        both = {8: [1, 4] * 8, 5: [1, 2, 1, 3] * 4}[size]
    assert seen == [(n, True) for n in both]
    assert not logged(trainer, "sam/sharpness") or key == "rsam"


@pytest.mark.parametrize(
    "key", [k if k in ("sam", "rsam", "msam") else thorough(k) for k in PERTURBING]
)
def test_the_whole_fraction_is_the_method(key: str, tmp_path: Path) -> None:
    common = {"max_steps": 3, "dropout": 0.1, "sam": key}
    whole = train(tmp_path, sam_options={"ascent_fraction": 1.0, **OPTIONS.get(key, {})}, **common)
    method = train(tmp_path, sam_options=OPTIONS.get(key), **common)
    assert_equal(weights(whole), weights(method))


def test_the_fraction_perturbs_along_its_own_gradient(tmp_path: Path) -> None:
    data = examples("bert", 12)
    found = one_update(tmp_path, "bert", sam="sam", sam_options="ascent_fraction=0.25")
    network, batch = bert().double(), default_data_collator(data)
    before = step_aside(
        network, gradient(network, mean_loss(network, rows(batch, slice(0, 3)))), 0.05
    )
    expected = gradient(network, mean_loss(network, batch))
    put_back(network, before)
    assert_equal(found, expected, 1e-12)


class Sometimes(nn.Module):
    """A second head that only some examples use, as experts are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.extra = llama(), nn.Linear(16, 1)
        self.config = self.inner.config

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        outputs = self.inner(input_ids=input_ids, labels=labels, output_hidden_states=True)
        if len(input_ids) > 4:
            outputs.loss = outputs.loss + self.extra(outputs.hidden_states[-1]).square().mean()
        return outputs


def test_what_only_the_whole_batch_uses_is_updated(tmp_path: Path) -> None:
    """A gradient that the ascent's part of the batch does not have is not missing."""
    network = Sometimes()
    before = network.extra.weight.detach().clone()
    train(
        tmp_path,
        model="llama",
        built=network,
        max_steps=1,
        sam="sam",
        sam_options="ascent_fraction=0.25",
    )
    assert not torch.equal(network.extra.weight, before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sam_options": "ascent_fraction=0"}, "ascent_fraction=0 is not allowed"),
        ({"sam_options": "ascent_fraction=1.5"}, "ascent_fraction=1.5"),
        ({"sam": "esam", "sam_options": "ascent_fraction=0.5"}, "no option 'ascent_fraction'"),
        (
            {"sam_options": "ascent_fraction=0.5", "sam_when": "adaptive"},
            "SAM with ascent_fraction=0.5 does not compute first",
        ),
    ],
)
def test_what_is_refused(settings: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, **settings)
