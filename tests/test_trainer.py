# SPDX-License-Identifier: Apache-2.0
"""SAMTrainer as a guest of Trainer: windows, logs, interruptions, data that ends early, foreign
trainers.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_sam import ASAM, METHODS, SAM, SAMArguments, SAMMixin, SAMTrainer, SAMTrainingArguments
from hf_sam.host import measuring
from hf_sam.sweeps import GROUPED, forced
from tests.cases import CASES
from tests.toys import (
    CHECKPOINTING,
    assert_equal,
    bert,
    examples,
    logged,
    make_trainer,
    resnet,
    t5,
    train,
    weights,
)

KEYS = {
    "sam/sharpness",
    "sam/perturbation_norm",
    "sam/ascent_grad_norm",
    "sam/grad_cosine",
    "sam/skipped",
    "sam/share_perturbed_updates",
}


def test_replace_trainer_by_sam_trainer(tmp_path: Path) -> None:
    """`sam=` takes a name, an object or nothing; with nothing the arguments decide."""
    network, data = bert(), examples("bert")
    plain_args = TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    assert (
        SAMTrainer(model=network, args=plain_args, train_dataset=data).sam_config["method"]["name"]
        == "SAM"
    )
    by_name = SAMTrainer(model=network, args=plain_args, train_dataset=data, sam="asam")
    assert by_name.sam_config["method"]["name"] == "ASAM"
    by_object = SAMTrainer(model=network, args=plain_args, train_dataset=data, sam=SAM(rho=0.2))
    assert by_object.sam_config["method"]["rho"] == 0.2
    args = SAMTrainingArguments(
        str(tmp_path), sam="asam", sam_rho=0.3, sam_options={"eta": 0.1}, use_cpu=True
    )
    by_args = SAMTrainer(model=network, args=args, train_dataset=data)
    method = by_args.sam_config["method"]
    assert (method["name"], method["rho"], method["eta"]) == ("ASAM", 0.3, 0.1)


def test_a_method_object_is_copied_for_every_run(tmp_path: Path) -> None:
    given = ASAM(rho=0.1)
    trainer = make_trainer(tmp_path, sam_object=given, max_steps=2)
    trainer.train()
    assert trainer._method is not given and not given.state


def test_sam_really_evaluates_at_the_perturbed_weights(tmp_path: Path) -> None:
    """The trainer's first update equals the formula, written out with two plain backward passes."""
    trainer = train(
        tmp_path, dtype=torch.float64, optim="sgd", max_steps=1, max_grad_norm=0.0, sam_rho=0.05
    )
    network = bert().to(torch.float64)
    seen: list[Any] = []
    probe = make_trainer(tmp_path, dtype=torch.float64, sam="none", max_steps=1)
    loader = probe.get_train_dataloader()
    probe.accelerator.even_batches = False
    torch.manual_seed(3)
    seen.append(next(iter(loader)))
    batch = seen[0]

    def gradient() -> list[torch.Tensor]:
        network.zero_grad()
        network(**batch).loss.backward()
        return [p.grad.clone() for p in network.parameters()]

    here = gradient()
    norm = math.sqrt(sum(float(g.square().sum()) for g in here))
    with torch.no_grad():
        for p, g in zip(network.parameters(), here, strict=True):
            p.add_(g * (0.05 / norm))
    there = gradient()
    expected = [
        p - 1e-2 * g for p, g in zip(bert().to(torch.float64).parameters(), there, strict=True)
    ]
    assert_equal(weights(trainer), expected, 1e-12)


def test_the_log(tmp_path: Path) -> None:
    """Every logging step has the readings; loss is the clean one and grad_norm the clipped
    gradient's.
    """
    data = examples("bert", 8)
    trainer = train(
        tmp_path, data=data, max_steps=4, sam_rho=0.1, optim="sgd", lr_scheduler_type="constant"
    )
    plain = train(tmp_path, data=data, max_steps=1, sam="none")
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4 and all(KEYS <= entry.keys() for entry in logs)
    first = logs[0]
    assert first["loss"] == logged(plain)[0], "the clean loss at w"
    assert first["sam/perturbation_norm"] == pytest.approx(0.1, rel=1e-6)
    assert first["sam/ascent_grad_norm"] == pytest.approx(logged(plain, "grad_norm")[0], rel=1e-6)
    assert first["sam/sharpness"] > 0 and 0 < first["sam/grad_cosine"] <= 1.0
    assert first["sam/skipped"] == 0 and first["sam/share_perturbed_updates"] == 1.0


def test_log_values_are_means_over_the_perturbed_updates(tmp_path: Path) -> None:
    each = train(tmp_path, max_steps=6, sam_when="every:2")
    joint = train(tmp_path, max_steps=6, sam_when="every:2", logging_steps=3)
    shares = logged(each, "sam/share_perturbed_updates")
    assert shares == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert logged(joint, "sam/share_perturbed_updates") == pytest.approx([2 / 3, 1 / 3])
    singles = [e.get("sam/sharpness") for e in each.state.log_history if "loss" in e]
    assert singles[1] is None, "an update without perturbation has no sharpness"
    assert logged(joint, "sam/sharpness")[0] == pytest.approx(
        (singles[0] + singles[2]) / 2, rel=1e-5
    )


class Reads(TorchDispatchMode):
    """Counts how often a value of a tensor is asked for in Python.

    Attributes:
        now: so far.
    """

    now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.now += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))

    def counting(self, name: str) -> Any:
        """Return the method of a tensor that reads it whole, and is counted."""
        original = getattr(torch.Tensor, name)

        def count(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.now += 1
            return original(tensor, *args, **kwargs)

        return count


class PerUpdate(TrainerCallback):
    """Writes down how much a count grows in each update."""

    def __init__(self, count: Callable[[], int]) -> None:
        self.count = count
        self.found: list[int] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.count()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.found.append(self.count() - self.before)


QUIET = {
    "max_steps": 7,  # LookSAM renews in the first and the sixth
    "logging_steps": 1000,
    "logging_nan_inf_filter": False,
}
ON_HOST = {"ss_sam": 1, "esam": 2, "tail_sam": 1, "ae_sam": 1}
"""Values per update that a method reads on the host: what it draws there (SS-SAM, ESAM), whether a
part of the batch has labels (Tail SAM), and the gate that the gradient's norm opens (AE-SAM)."""

BY_NUMPY = ("ssam_f", "ssam_d")
"""Methods that gather weights on a CPU by numpy; `laws/test_launches.py` is about devices."""


def no_renewals(key: str) -> dict[str, Any]:
    """Return options under which a mask is made in the first update only."""
    fisher = {"fisher_samples": 2} if key == "ssam_f" else {}
    return {"sam_options": {"update_interval": 100} | fisher} if key.startswith("ssam") else {}


def toy_of(key: str) -> str:
    """Return the toy on which a method runs."""
    return next((case.toy("bert") for case in CASES if case.key == key), "bert")


def reads_per_update(key: str, folder: Path) -> list[int]:
    """Return how many values each update after the first asks for."""
    reads = Reads()
    watch = PerUpdate(lambda: reads.now)
    more = QUIET | no_renewals(key) | {"optim": "sgd", "callbacks": [watch]}
    trainer = make_trainer(folder, model=toy_of(key), sam=key, **more)
    with pytest.MonkeyPatch.context() as patch, reads:
        for method in ("tolist", "cpu", *(() if key in BY_NUMPY else ("numpy",))):
            patch.setattr(torch.Tensor, method, reads.counting(method))
        with forced(GROUPED):  # a CPU may look at its own numbers
            trainer.train()
    return watch.found[1:]


@pytest.fixture(scope="module")
def plain_reads(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return reads_per_update("none", tmp_path_factory.mktemp("none"))


@pytest.mark.parametrize("key", [key for key in METHODS if key != "none"])
def test_no_more_host_synchronisation_than_trainer(
    key: str, plain_reads: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that does not log asks for no value that the plain Trainer does not ask for."""
    monkeypatch.setattr(measuring, "WINDOWS", 1)  # the loss is asked about the first batches only
    found = reads_per_update(key, tmp_path)
    assert len(found) == 6
    most = [n + ON_HOST.get(key, 0) for n in plain_reads]
    assert all(n <= m for n, m in zip(found, most, strict=True)), (found, plain_reads)


@pytest.mark.gpu
@pytest.mark.parametrize("key", METHODS)
def test_no_more_waiting_for_a_gpu_than_trainer(key: str, tmp_path: Path) -> None:
    """The same by CUDA's own account, with mixed precision and its GradScaler."""
    found = {}
    for name in ("none", key):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            watch = PerUpdate(partial(times_waited, told))
            more = QUIET | no_renewals(name) | {"use_cpu": False, "fp16": True}
            more |= {"model": toy_of(key)}
            trainer = make_trainer(tmp_path, sam=name, callbacks=[watch], **more)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.train()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found[name] = watch.found[1:]
    assert all(n <= m for n, m in zip(found[key], found["none"], strict=True)), found


def times_waited(told: list[warnings.WarningMessage]) -> int:
    """Return how many of the warnings are about waiting for the GPU."""
    return sum("called a synchronizing" in str(w.message) for w in told)


@pytest.mark.parametrize("key", ["sam", "asam", "ssam_d", "friendly_sam", "msam", "rsam", "esam"])
def test_gradients_of_what_is_not_perturbed_are_not_computed_twice(
    key: str, tmp_path: Path
) -> None:
    """Under `sam_where` the pass that only serves to perturb leaves the other weights out."""
    trainer = make_trainer(tmp_path, sam=key, sam_where=["norm"], max_steps=2, logging_steps=1)
    computed: Counter[str] = Counter()
    for name, p in trainer.model.named_parameters():
        p.register_hook(lambda g, name=name: computed.update([name]))
    trainer.train()
    passes = 8 if key == "msam" else 2  # groups
    inside = [n for n in computed if "LayerNorm" in n]
    assert inside and len(computed) > len(inside)
    for name, n in computed.items():
        if name not in inside:
            assert n == passes, name
        elif key != "esam":  # which leaves out some of them by chance
            assert n == 2 * passes, name
    assert logged(trainer, "sam/ascent_grad_norm")[0] > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool, tmp_path: Path) -> None:
    """Both modes of gradient checkpointing give the same weights as none."""
    mode = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    without = train(tmp_path, dropout=0.1, max_steps=4)
    with_it = train(tmp_path, dropout=0.1, max_steps=4, **mode)
    assert_equal(weights(without), weights(with_it), 1e-6)


class StopInTheMiddle(TrainerCallback):
    """Stops inside the second window."""

    def on_substep_end(self, args, state, control, **_):
        if state.global_step == 1:
            control.should_training_stop = True


def test_stop_in_on_substep_end(tmp_path: Path) -> None:
    """A half-filled window is forgotten: training again starts a new one."""
    settings = {
        "gradient_accumulation_steps": 3,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "max_steps": 4,
        "data": examples("bert", 12),  # one window: its order does not matter
    }
    trainer = make_trainer(tmp_path, callbacks=[StopInTheMiddle()], **settings)
    trainer.train()
    assert trainer.state.global_step == 1
    trainer.remove_callback(StopInTheMiddle)
    trainer.model.load_state_dict(bert().state_dict())
    trainer.optimizer, trainer.lr_scheduler = None, None
    trainer.train()
    assert trainer.state.global_step == 4
    assert_equal(weights(trainer), weights(train(tmp_path, **settings)), 1e-6)


class OutOfMemoryOnce(torch.nn.Module):
    """Raises as CUDA does, in the perturbed pass of a batch that is too large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()
        self.config = self.inner.config
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        """Fail in the second pass of 16 examples."""
        self.calls += 1
        if self.calls % 2 == 0 and len(labels) == 16:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 byte")
        return self.inner(input_ids=input_ids, labels=labels)


def test_auto_find_batch_size(tmp_path: Path) -> None:
    """An out-of-memory error in the second pass halves the batch; the weights were returned
    before.
    """
    network = OutOfMemoryOnce()
    before = [p.detach().clone() for p in network.parameters()]
    trainer = make_trainer(
        tmp_path,
        built=network,
        data=examples("bert", 32),
        auto_find_batch_size=True,
        per_device_train_batch_size=16,
        max_steps=2,
        learning_rate=0.0,
        optim="sgd",
    )
    trainer.train()
    assert trainer._train_batch_size < 16 and trainer.state.global_step == 2
    assert_equal(weights(trainer), before)


class Stream(torch.utils.data.IterableDataset):
    """An iterable dataset of n examples."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        """Iterate over fixed examples."""
        return iter(examples("bert", self.n))


def test_an_iterable_dataset_that_ends_inside_a_window(tmp_path: Path, caplog: Any) -> None:
    """The orphan window is dropped, with one warning; the next epoch starts clean."""
    settings = {
        "gradient_accumulation_steps": 3,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "optim": "sgd",
    }
    # 20 examples: 5 micro-batches, one window of three and an orphan of two in every epoch.
    ragged = train(tmp_path, data=Stream(20), **settings)
    assert ragged.state.global_step == 4
    assert len([r for r in caplog.records if "they are dropped" in r.getMessage()]) == 1
    even = train(tmp_path, data=Stream(12), **settings)
    assert_equal(weights(ragged), weights(even))


def test_a_nan_batch_is_trainers_business(tmp_path: Path) -> None:
    """It is handled as the plain Trainer would, counted, and no weight is left perturbed."""
    settings = {"model": "resnet", "max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0}
    poisoned = [
        {**e, "pixel_values": e["pixel_values"] * float("nan")} for e in examples("resnet", 8)
    ]
    ours = train(tmp_path, data=poisoned, **settings)
    plain = train(tmp_path, data=poisoned, cls=Trainer, **settings)
    for a, b in zip(weights(ours), weights(plain), strict=True):
        assert torch.equal(torch.isnan(a), torch.isnan(b))
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert logged(ours, "sam/skipped") == [1.0]


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """One line makes any trainer a SAM trainer."""


class SAMSeq2SeqArguments(SAMArguments, Seq2SeqTrainingArguments):
    """And any arguments SAM arguments."""


@pytest.mark.parametrize("accumulation", [1, 2])
def test_seq2seq_trainer_trains_a_t5(accumulation: int, tmp_path: Path) -> None:
    def run(sam: str, rho: float | None = None) -> Any:
        args = SAMSeq2SeqArguments(
            str(tmp_path),
            sam=sam,
            sam_rho=rho,
            max_steps=6,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = SAMSeq2SeqTrainer(model=t5(), args=args, train_dataset=examples("t5"))
        trainer.train()
        return trainer

    sam = run("sam")
    assert KEYS <= sam.state.log_history[0].keys()
    assert logged(sam)[-1] < logged(sam)[0]
    assert_equal(weights(run("sam", 0.0)), weights(run("none")))


def test_micro_differs_from_window_and_norm_statistics_move_once(tmp_path: Path) -> None:
    """Running statistics see each micro-batch once per update, however many passes there are."""
    sam = train(tmp_path, model="resnet", max_steps=3)
    counted = [b for n, b in sam.model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counted and all(int(b) == 3 for b in counted)
    unfrozen = train(tmp_path, model="resnet", max_steps=3, sam_freeze_norm_stats=False)
    assert all(
        int(b) == 6 for n, b in unfrozen.model.named_buffers() if n.endswith("num_batches_tracked")
    )


def test_cumulative_statistics_are_frozen_too(tmp_path: Path) -> None:
    """momentum=None averages over all batches seen: counting twice would be wrong."""
    networks = []
    for sam in ("none", "sam"):
        network = resnet()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        train(tmp_path, built=network, model="resnet", sam=sam, sam_rho=0.0, max_steps=3)
        networks.append(network)
    assert_equal(list(networks[0].buffers()), list(networks[1].buffers()))


def test_replay_gives_both_passes_the_same_dropout(tmp_path: Path) -> None:
    same = train(tmp_path, dropout=0.3, max_steps=1, sam_rho=1e-6)
    fresh = train(tmp_path, dropout=0.3, max_steps=1, sam_rho=1e-6, sam_replay_rng=False)
    assert abs(logged(same, "sam/sharpness")[0]) < 1e-5 < abs(logged(fresh, "sam/sharpness")[0])


def test_warm_up_and_total_reach_the_schedule(tmp_path: Path) -> None:
    trainer = train(tmp_path, max_steps=8, warmup_steps=3, sam_when="after_warmup")
    assert logged(trainer, "sam/share_perturbed_updates") == [0.0] * 3 + [1.0] * 5
    late = train(tmp_path, max_steps=8, sam_when="after:0.75")
    assert logged(late, "sam/share_perturbed_updates") == [0.0] * 6 + [1.0] * 2


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear:0.08:0", [0.08 * (1 - t / 4) for t in range(4)]),
        ("cosine:0.08:0", [0.04 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]),
        ("lr:0.08", [0.08 * (1 - t / 4) for t in range(4)]),
    ],
)
def test_radius_schedules(schedule: str, expected: list[float], tmp_path: Path) -> None:
    trainer = train(tmp_path, max_steps=4, sam_rho=schedule)
    assert logged(trainer, "sam/perturbation_norm") == pytest.approx(expected, rel=1e-5)


def test_radius_budget_is_a_share_of_the_loss(tmp_path: Path) -> None:
    trainer = train(tmp_path, max_steps=3, sam_rho="budget:0.02:1")
    for entry in trainer.state.log_history[:3]:
        wanted = 0.02 * entry["loss"] / entry["sam/ascent_grad_norm"]
        assert entry["sam/perturbation_norm"] == pytest.approx(wanted, rel=1e-5)
    capped = train(tmp_path, max_steps=3, sam_rho="budget:0.02:0.001")
    assert logged(capped, "sam/perturbation_norm") == pytest.approx([0.001] * 3, rel=1e-5)


def known(trainer: Any) -> tuple[Any, Any]:
    """The names of the parameters, and which of them may be perturbed."""
    return trainer._run.parameters.names, trainer._run.parameters.perturbable


def test_where(tmp_path: Path) -> None:
    """The perturbation and its radius live on the chosen parameters, the update on all."""
    norms = train(tmp_path, max_steps=2, sam_where=["norm"], optim="sgd")
    assert logged(norms, "sam/perturbation_norm") == pytest.approx([0.05] * 2, rel=1e-5)
    picked = [
        n
        for n, yes in zip(
            norms._run.parameters.names, norms._run.parameters.perturbable, strict=True
        )
        if yes
    ]
    assert picked and all("LayerNorm" in n for n in picked)
    before = dict(bert().named_parameters())
    moved = [n for n, p in norms.model.named_parameters() if not torch.equal(p, before[n])]
    assert any("LayerNorm" not in n for n in moved)
    free = make_trainer(tmp_path, sam_where=["no_norm", "no_embeddings"], max_steps=1)
    free.train()
    picked = [n for n, yes in zip(*known(free), strict=True) if yes]
    assert picked and not any("LayerNorm" in n or "embeddings" in n for n in picked)
    heads = make_trainer(tmp_path, sam_where=[r"^classifier\.", "pooler"], max_steps=1)
    heads.train()
    picked = [n for n, yes in zip(*known(heads), strict=True) if yes]
    assert {n.split(".")[0] for n in picked} == {"classifier", "bert"} and len(picked) == 4
