# SPDX-License-Identifier: Apache-2.0
"""Law 10: memory is counted, in P, the size of the trainable parameters.

What torch allocates on CPU is read from its profiler, so the numbers are exact. The models are made
of weights: batches are tiny and SGD needs nothing of its own, so nothing hides behind them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer

from hf_sam import METHODS, Composed, Landscape, Method, Progress, Vector, sweeps
from hf_sam.estimate.allocations import Allocations
from hf_sam.landscape import HeadTap, Layer, Pair, Support, perturbation
from hf_sam.methods import flat_lora, rsam
from hf_sam.parts.direction import Direction, chain
from hf_sam.parts.masks import dynamic_mask
from hf_sam.parts.radius import radius
from hf_sam.parts.scores import largest
from tests.cases import CASES, Case
from tests.toys import examples, make_trainer

WIDTH = 128
LAYERS = 16
SLACK = 0.02
SAME_RANK = {"rank": WIDTH // 4}
"""Of a second adapter, so that it is as large as the first one."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory is at most some slices: here in proportion to the model."""
    monkeypatch.setattr(sweeps, "CACHED", sweeps.Policy(1 << 12, eager=True))


class Deep:
    """A chain of square matrices under a tanh each, for bare Landscapes.

    Attributes:
        bytes: P.
    """

    layers: Any = None

    def __init__(self, shapes: list[tuple[int, int]] | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = shapes or [(WIDTH, WIDTH)] * LAYERS
        self.params = [nn.Parameter(torch.randn(s, generator=draw) / WIDTH**0.5) for s in shapes]

    @property
    def bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.params)

    def products(self) -> list[Callable[[Tensor], Tensor]]:
        """What each layer multiplies its inputs by."""
        return [functools.partial(torch.matmul, other=p) for p in self.params]

    def losses(self, x: Tensor, share: Any = 1.0, head: HeadTap | None = None) -> Tensor:
        *trunk, last = self.products()
        for product in trunk:
            x = torch.tanh(product(x))
        z = last(x)
        if head is not None:
            z = head(x, z, lambda z: torch.tanh(z).square().sum(1).mean() * share)
        return torch.tanh(z).square().sum(1)

    def backward(
        self,
        x: Tensor,
        share: Any = 1.0,
        with_losses: bool = False,
        head: HeadTap | None = None,
    ) -> Any:
        losses = self.losses(x, share, head)
        loss = losses.mean() * share
        loss.backward()
        return (loss.detach(), losses.detach()) if with_losses else loss.detach()

    def per_example(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.losses(x)

    def batch(self, seed: int, n: int) -> Tensor:
        return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))

    def landscape(self, step: int, total: int, batches: int, **more: Any) -> Landscape:
        return Landscape(
            self.params,
            list(self.batch(step, 3).chunk(batches)),
            self.backward,
            progress=Progress(step, total, lr_ratio=1 - step / total, learning_rate=1e-3),
            seed=1,
            names=[f"{i}.weight" for i in range(len(self.params))],
            per_example=self.per_example,
            sample=lambda n, generator: [self.batch(100 + i, 1) for i in range(n)],
            layers=self.layers,
            **more,
        )


class DeepAdapted(Deep):
    """The same chain, frozen, with an adapter of a quarter of its rank on each matrix."""

    def __init__(self) -> None:
        super().__init__([(WIDTH // 4, WIDTH), (WIDTH, WIDTH // 4)] * LAYERS)
        self.bases = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
        for base in self.bases:
            base.requires_grad_(False)

    def products(self) -> list[Callable[[Tensor], Tensor]]:
        """What each layer multiplies its inputs by."""

        def product(i: int, x: Tensor) -> Tensor:
            return self.bases[i](x) + x @ self.params[2 * i].T @ self.params[2 * i + 1].T

        return [functools.partial(product, i) for i in range(LAYERS)]

    def layers(self) -> list[Layer]:
        pairs = [Pair(2 * i, 2 * i + 1) for i in range(LAYERS)]
        return [Layer(f"{i}", self.bases[i], [pair]) for i, pair in enumerate(pairs)]


def updates(method: Method, model: Deep, total: int, batches: int, **more: Any) -> list[int]:
    """Return the peaks of some updates with SGD."""
    optimizer = torch.optim.SGD(model.params, lr=1e-3)
    with Allocations() as found:
        for step in range(total):
            found.mark(f"{step}")
            at = model.landscape(step, total, batches, **more)
            at.update.engine.give(model.params, method(at))
            optimizer.step()
            optimizer.zero_grad()
    return list(found.peaks.values())[1:]


@functools.cache
def plain_peak(make: Callable[[], Deep], batches: int) -> int:
    """Return the peak of the plain Trainer's update."""
    return max(updates(METHODS["none"](), make(), 1, batches))


def extra(
    method: Method, total: int = 2, batches: int = 1, make: Callable[[], Deep] = Deep
) -> list[float]:
    """Return each update's peak beyond the plain Trainer's, in P."""
    plain, deep = plain_peak(make, batches), make()
    return [(peak - plain) / deep.bytes for peak in updates(method, deep, total, batches)]


def draw_in_torch(like: Tensor, key: tuple[int, ...], shape: torch.Size) -> Tensor:
    """Return R-SAM's noise where torch counts it; numpy's memory it does not see."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(key[2]))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batches", [1, 3])
def test_each_row_says_its_memory(
    case: Case, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most what its row says, and not much less; accumulation adds nothing to it."""
    monkeypatch.setattr(rsam, "normal", draw_in_torch)
    monkeypatch.setattr(flat_lora, "normal", draw_in_torch)
    total = {"looksam": 6, "late_sam": 4}.get(case.key, 2)  # up to a second refresh, to the start
    toy, options = (DeepAdapted, SAME_RANK) if case.adapters else (Deep, {})
    options = {k: options.get(k, v) for k, v in case.options.items()}
    found = extra(METHODS[case.key](**options), total, batches, toy)
    stated = [case.extra_p + case.layer_p * WIDTH * WIDTH * 4 / toy().bytes] * total
    if case.mask_p is not None:
        stated[0] = case.mask_p + 1 / LAYERS  # scratch for a tensor
    if case.head and batches > 1:
        stated = [p + 1 / LAYERS for p in stated]
    assert all(a <= b + SLACK for a, b in zip(found, stated, strict=True)), found
    if batches == 1 and case.key != "esam":  # which perturbs some tensors by chance
        assert found[-1] == pytest.approx(stated[-1], abs=SLACK)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_page_says_it_too(case: Case) -> None:
    """As its first number."""
    said = re.match(r"[\d.]+(?<!\.)", METHODS[case.key].memory)
    assert said is not None and float(said[0]) == case.extra_p


@pytest.mark.parametrize("key", ["sam", "asam", "stable_sam", "looksam"])
def test_one_large_tensor_needs_no_copy_of_itself(key: str) -> None:
    """As a language model's embeddings: most of the weights."""
    shapes = [(WIDTH, WIDTH)] * 7 + [(WIDTH, 25 * WIDTH)]
    found = extra(METHODS[key](), make=lambda: Deep(shapes))
    assert max(found) <= next(c.extra_p for c in CASES if c.key == key) + SLACK


def test_groups_add_nothing_to_each_other() -> None:
    assert max(extra(METHODS["msam"](micro_batches=4))) == pytest.approx(2.0, abs=SLACK)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "mask"),
    [("structured", 0.5, 0.0), ("structured", 0.75, 0.0), ("2:4", 0.5, 0.25), ("1:4", 0.75, 0.25)],
)
def test_sparse_sam_saves_what_it_perturbs(pattern: str, sparsity: float, mask: float) -> None:
    """A snapshot of these weights, and the mask of one byte per weight."""
    found = extra(METHODS["ssam_f"](pattern=pattern, sparsity=sparsity, fisher_samples=2))
    assert max(found[1:]) == pytest.approx(1 - sparsity + mask, abs=SLACK)


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_only_what_is_perturbed_needs_a_snapshot(sparsity: float) -> None:
    found = extra(METHODS["ssam_d"](sparsity=sparsity))
    assert max(found[1:]) == pytest.approx(1 - sparsity + 0.25, abs=SLACK)


@pytest.mark.parametrize(("drop", "growth"), [("weight", "random"), ("gradient", "gradient")])
def test_an_exchange_holds_half_a_set_of_scores(drop: str, growth: str) -> None:
    """Beside three masks (the old one, what stays and what comes) and scratch for a tensor."""
    found = extra(METHODS["ssam_d"](update_interval=1, growth=growth, drop=drop))
    assert max(found) <= 1.25 + 4 / LAYERS


def test_equal_scores_need_no_scratch_of_their_size() -> None:
    """As those of the words that no example had: three masks of a byte per weight."""
    scores: list[Tensor | None] = [torch.zeros(300, 1000)]
    with Allocations() as found:
        largest(scores, 1000)
    assert found.peaks[""] <= 1.01 * 3 * 300_000


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ok", [True, False])
def test_a_snapshot_inside_the_mask_is_enough(device: str, dtype: torch.dtype, ok: bool) -> None:
    """It does what a whole snapshot does, also for weights that have no flat view."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(50, 40, generator=draw).to(device, dtype) for _ in range(3)]
    params = [nn.Parameter(w.clone()) for w in (weights[0], weights[1].T, weights[2])]
    before = [p.detach().clone() for p in params]
    masks = [torch.rand(p.shape, generator=draw).lt(0.5).to(device) for p in params[:2]] + [None]
    entries = [torch.randn(p.shape, generator=draw).to(device, dtype) for p in params]
    eps = [e if m is None else e * m for e, m in zip(entries, masks, strict=True)]
    supports = [None if m is None else Support(m) for m in masks]
    found = []
    for some in (None, supports):
        moves = perturbation.Perturbation(
            params, [e.clone() for e in eps], torch.tensor(ok, device=device), some
        )
        with moves:
            found.append([p.detach().clone() for p in params])
            moves.along = Vector(entries)
        found.append([d for d in moves.displacement_dot if d is not None])
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    there, dots, sparse_there, sparse_dots = found
    assert all(torch.equal(a, b) for a, b in zip(there, sparse_there, strict=True))
    assert ok == any(not torch.equal(a, b) for a, b in zip(there, before, strict=True))
    torch.testing.assert_close(sparse_dots, dots, rtol=1e-4, atol=1e-3)


def test_the_weights_come_back_whatever_keeps_them_from_being_measured() -> None:
    param, before = nn.Parameter(torch.ones(30)), torch.ones(30)
    moves = perturbation.Perturbation([param], [torch.ones(30)], torch.tensor(True))
    with pytest.raises(RuntimeError, match="size"), moves:
        moves.along = Vector([torch.ones(29)])
    assert torch.equal(param.detach(), before)


def test_weights_outside_the_mask_stay_whatever_eps_holds() -> None:
    """So a wrong support can make a perturbation smaller, and never loses a weight."""
    param, mask = nn.Parameter(torch.zeros(30, 40)), torch.arange(40).expand(30, 40) % 2 == 0
    eps = torch.full((30, 40), float("nan")).masked_fill_(mask, 1.0)
    support = [Support(mask)]
    with perturbation.Perturbation([param], [eps], torch.tensor(True), support):
        assert torch.equal(param.detach(), mask.float())
    assert torch.equal(param.detach(), torch.zeros(30, 40))


@dataclass
class Everywhere(Direction):
    """A direction that is not zero outside of any mask."""

    def apply_(self, v: Vector, at: Landscape) -> Vector:
        for i in v.present:
            v[i].add_(0.01)
        return v.changed()


def test_a_direction_after_the_mask_is_perturbed_whole() -> None:
    seen, deep = [], Deep()
    before = [p.detach().clone() for p in deep.params]

    def backward(batch: Tensor, share: Any = 1.0) -> Tensor:
        seen.append([(p - b).detach() for p, b in zip(deep.params, before, strict=True)])
        return deep.backward(batch, share)

    ascent = chain(radius(0.05), dynamic_mask(0.5), Everywhere())
    Composed(ascent)(Landscape(deep.params, [deep.batch(0, 2)], backward))
    assert all(step.abs().gt(0).float().mean() > 0.99 for step in seen[1])
    assert all(torch.equal(p, b) for p, b in zip(deep.params, before, strict=True))


class Matrices(nn.Module):
    """A model of Trainer's kind that is nearly all weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(128, 128, bias=False) for _ in range(LAYERS))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": nn.functional.cross_entropy(x, labels), "logits": x}


def training(folder: Path, model: nn.Module, data: list[Any], **settings: Any) -> int:
    """Return the peak of a short training, in bytes."""
    settings = {"max_steps": 3, "optim": "sgd", "logging_steps": 2, **settings}
    trainer = make_trainer(folder, built=model, data=data, **settings)
    with Allocations() as found:
        trainer.train()
    return max(found.peaks.values())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sam_in_trainer(accumulation: int, tmp_path: Path) -> None:
    """At most 1 P beyond the plain Trainer, with clipping and logging, however long the window."""
    data = [{"x": torch.randn(128), "labels": i % 2} for i in range(24)]
    common = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    model = Matrices()
    size = sum(p.numel() * 4 for p in model.parameters())
    plain = training(tmp_path, model, data, cls=Trainer, **common)
    none = training(tmp_path, model, data, sam="none", **common)
    sam = training(tmp_path, model, data, sam="sam", **common)
    assert (none - plain) / size == pytest.approx(0.0, abs=SLACK)
    assert (sam - plain) / size == pytest.approx(1.0, abs=SLACK)


def test_an_adapter_costs_nothing(tmp_path: Path) -> None:
    """LoRA: below 1 % of the model."""
    from peft import LoraConfig, get_peft_model

    config = BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=1024,
    )
    adapter = LoraConfig(task_type="SEQ_CLS", r=1, target_modules=["query", "value"])
    model = get_peft_model(BertForSequenceClassification(config), adapter)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    data = examples("bert", 24)
    plain = training(tmp_path, model, data, sam="none")
    for key in ("sam", "friendly_sam", "msam", "looksam"):
        assert training(tmp_path, model, data, sam=key) - plain < 0.01 * size, key
