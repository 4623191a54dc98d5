# SPDX-License-Identifier: Apache-2.0
"""What only an accelerator does: its own generators, kernels, memory and formats.

Most tests are marked `gpu`; where a body runs on a CPU as well, it does so in the quick suite, so
that a mistake in the test itself is not first seen on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer

from hf_sam import METHODS, SAMTrainer, sweeps
from hf_sam.landscape.replay import RandomStates
from hf_sam.sweeps import Policy, forced
from tests.cases import CASES, Case
from tests.laws.test_memory import SAME_RANK, WIDTH, Deep, DeepAdapted
from tests.test_compile import Small
from tests.test_compile import run as run_compiled
from tests.test_precision import scaled
from tests.toys import assert_equal, bowl_for, llama, make_trainer, resnet, train, weights

ON_BOTH = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
every_method = pytest.mark.parametrize("case", CASES, ids=str)
draws = pytest.mark.parametrize("key", ["rsam", "esam", "ssam_d", "ssam_f", "ss_sam", "msam"])


def choice(case: Case) -> dict[str, Any]:
    return {"sam": case.key, "sam_options": case.options or None, "model": case.toy("bert")}


def on(device: str) -> dict[str, Any]:
    return {"use_cpu": device == "cpu", "max_steps": 5, "dropout": 0.3}


def place(toy: Any, device: str) -> Any:
    """Move a toy of float64 or of many matrices, its layers and its batches to a device."""
    toy.params = [nn.Parameter(p.detach().to(device)) for p in toy.params]
    for name, held in list(vars(toy).items()):
        if isinstance(held, (Tensor, nn.Module)):
            setattr(toy, name, held.to(device))
    for base in getattr(toy, "bases", []):
        base.to(device)
    batch = toy.batch

    def placed(*given: Any) -> Any:
        made = batch(*given)
        return made.to(device) if isinstance(made, Tensor) else tuple(t.to(device) for t in made)

    toy.batch = placed
    return toy


def descended(case: Case, device: str) -> list[Tensor]:
    """Return the weights after eight updates of plain gradient descent."""
    bowl = place(bowl_for(case), device)
    options = case.options | ({"sigma": 0.0} if case.key == "rsam" else {})
    method = METHODS[case.key](**options)
    for step in range(8):
        update = method(bowl.landscape(step, total=8))
        with torch.no_grad():
            for p, entry in zip(bowl.params, update, strict=True):
                if entry is not None:
                    p.sub_(0.05 * entry)
        for p in bowl.params:
            p.grad = None
    return [p.detach().cpu() for p in bowl.params]


@pytest.mark.gpu
@every_method
def test_a_gpu_follows_the_cpu_in_float64(case: Case) -> None:
    """Foreach kernels, `nonzero_static` and masks included; no noise, drawn where weights are."""
    if case.key == "flat_lora":
        pytest.skip("all that it does is noise")
    assert_equal(descended(case, "cuda"), descended(case, "cpu"), 1e-9)


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("key", ["sam", "rsam", "ssam_f", "bilateral_sam"])
def test_passes_repeat_the_dropout_of_the_first(key: str, device: str, tmp_path: Path) -> None:
    """At rho = 0 all passes of an update give the same logits, and the generators end as plain."""
    case = next(case for case in CASES if case.key == key)
    seen: list[Tensor] = []
    options = case.options | {k: v for k, v in case.rho_zero.items() if k != "rho"}
    ours = make_trainer(tmp_path, sam=key, sam_rho=0.0, sam_options=options or None, **on(device))
    ours.model.register_forward_hook(
        lambda model, args, out: (
            seen.append(out.logits.detach().clone()) if model.training else None
        )
    )
    ours.train()
    after = generators(device)
    train(tmp_path, cls=Trainer, **on(device))
    passes = [case.passes(step, 5) for step in range(5)]
    whole = [logits for logits in seen if len(logits) == 8]
    many = len(whole) // 5
    assert many == min(passes) >= 2
    for update in range(5):
        first, *others = whole[update * many : (update + 1) * many]
        assert all(torch.equal(first, other) for other in others)
    assert all(torch.equal(a, b) for a, b in zip(after, generators(device), strict=True))


def generators(device: str) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device == "cpu" else [*states, torch.cuda.get_rng_state()]


@pytest.mark.parametrize("device", ON_BOTH)
def test_a_generator_is_put_back_where_it_was(device: str) -> None:
    restore = RandomStates([torch.device(device, 0)]).remember()
    first = torch.rand(5, device=device)
    torch.rand(3, device=device)
    restore()
    assert torch.equal(torch.rand(5, device=device), first)


@pytest.mark.gpu
@draws
def test_what_is_drawn_follows_from_the_seed(key: str, tmp_path: Path) -> None:
    one, two = (train(tmp_path, sam=key, **on("cuda")) for _ in range(2))
    other = train(tmp_path, sam=key, **on("cuda"), seed=4)
    assert_equal(weights(one), weights(two), 1e-5)  # atomics may sum in another order
    assert not all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.gpu
@every_method
def test_every_weight_returns(case: Case, tmp_path: Path) -> None:
    """Bit for bit, under bfloat16 autocast."""
    if case.moves:
        pytest.skip("moves weights beside its update")

    class Watching(SAMTrainer):
        def training_step(self, model: nn.Module, *rest: Any, **more: Any) -> Tensor:
            before = [p.detach().clone() for p in model.parameters()]
            loss = super().training_step(model, *rest, **more)
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            return loss

    train(tmp_path, cls=Watching, bf16=True, **choice(case), **on("cuda"))


@pytest.mark.gpu
@every_method
def test_resuming_equals_not_having_stopped(case: Case, tmp_path: Path) -> None:
    settings = choice(case) | on("cuda") | {"max_steps": 6, "save_strategy": "steps"}
    whole = train(tmp_path, save_steps=3, **settings)
    again = train(tmp_path, save_steps=3, resume=str(tmp_path / "checkpoint-3"), **settings)
    assert_equal(weights(again), weights(whole), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("place", [0, 1], ids=["first pass", "second pass"])
@pytest.mark.parametrize("key", ["sam", "friendly_sam", "looksam", "ssam_d"])
def test_an_overflow_skips_the_update(key: str, place: int, tmp_path: Path) -> None:
    """No weight moves, no state takes it in, and the scale falls."""
    more = {"use_cpu": False, "max_steps": 5}
    _, notes = scaled(tmp_path, overflow=(0, place), sam=key, **more)
    assert notes.moved == [False, True, True, True, True]
    assert notes.scales == [2.0**11] * 5 and all(notes.finite)


@pytest.mark.parametrize("device", ON_BOTH)
def test_channels_last_stays(device: str, tmp_path: Path) -> None:
    """The weights keep their format, and train as they do without it."""
    found = []
    for form in (torch.contiguous_format, torch.channels_last):
        model = resnet().to(memory_format=form)
        more = {"use_cpu": device == "cpu", "max_steps": 3, "optim": "sgd"}
        trainer = train(tmp_path, model="resnet", built=model, sam="asam", **more)
        large = [p for p in trainer.model.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=form) for p in large)
        found.append(weights(trainer))
    assert_equal(*found, 1e-4)


@pytest.mark.gpu
def test_inductor_on_a_gpu(tmp_path: Path) -> None:
    """As in eager, and graphs in the first updates only; without dropout, whose masks differ."""
    found = []
    for backend in (None, "inductor"):
        model = Small()
        model.drop.p = 0.0
        more = {"use_cpu": False, "optim": "sgd", "sam_rho": 0.5, "built": model}
        found.append(run_compiled(tmp_path, backend, **more))
    eager, compiled = found
    assert_equal(weights(compiled), weights(eager), 1e-4)
    assert compiled.graphs[-1] == compiled.graphs[1] >= 1


@pytest.mark.gpu
@every_method
def test_memory_by_the_allocator(case: Case) -> None:
    """At most what its row says and scratch: up to three groups (R-SAM's noise), of P / 8 here."""
    toy, rank = (DeepAdapted, SAME_RANK) if case.adapters else (Deep, {})
    options, size = {k: rank.get(k, v) for k, v in case.options.items()}, toy().bytes
    with forced(Policy(size // 8, eager=False)):
        plain = max(peaks("none", {}, place(toy(), "cuda"), 2))
        found = peaks(case.key, options, place(toy(), "cuda"), 6 if case.key == "looksam" else 4)
    stated = max(case.extra_p, case.mask_p or 0.0) + case.layer_p * WIDTH * WIDTH * 4 / size
    extra = (max(found) - plain) / size
    assert extra <= stated + 3 / 8 + 0.05, extra


def peaks(key: str, options: dict[str, Any], deep: Deep, total: int) -> list[int]:
    """Return the most bytes that the allocator held in each update with plain SGD."""
    method, found = METHODS[key](**options), []
    optimizer = torch.optim.SGD(deep.params, lr=1e-3)
    for step in range(total):
        torch.cuda.reset_peak_memory_stats()
        at = deep.landscape(step, total, 1)
        at.update.engine.give(deep.params, method(at))
        optimizer.step()
        optimizer.zero_grad()
        del at
        found.append(torch.cuda.max_memory_allocated())
    return found


@pytest.mark.gpu
def test_a_base_in_four_bits(tmp_path: Path) -> None:
    """LoRA on a quantized model: the base stays as it is, rho = 0 is the plain Trainer."""
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    llama().save_pretrained(tmp_path / "base")

    def built() -> nn.Module:
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=four, device_map={"": 0}
        )
        torch.manual_seed(0)
        adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
        return peft.get_peft_model(base, adapters)

    settings = {"model": "llama", "use_cpu": False, "max_steps": 4}
    before = [p.detach().clone() for p in built().parameters() if not p.requires_grad]
    sam = train(tmp_path, built=built(), sam_rho=0.5, **settings)
    zero = train(tmp_path, built=built(), sam_rho=0.0, **settings)
    plain = train(tmp_path, built=built(), cls=Trainer, **settings)
    after = [p for p in sam.model.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert_equal(trained(zero), trained(plain), 1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(trained(sam), trained(plain), strict=True))


def trained(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


def test_a_gpu_walks_in_groups() -> None:
    """So that everything above is about the kernels that a GPU runs."""
    assert sweeps.policy(torch.device("cuda")) == sweeps.GROUPED
