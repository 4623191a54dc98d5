# SPDX-License-Identifier: Apache-2.0
"""Two processes under torchrun: the same mathematics as in one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import CASES
from tests.distributed import reference
from tests.distributed.jobs import (
    GLOBAL,
    JOBS,
    LOCAL,
    RHO_ZERO,
    SCHEDULES,
    SGD,
    Branches,
    chooses_local,
    fit,
    global_settings,
    method_settings,
    steeper,
)
from tests.distributed.launch import torchrun
from tests.toys import MODELS, assert_equal

Ranks = tuple[dict[str, Any], dict[str, Any]]
Logs = list[dict[str, float]]

pytestmark = pytest.mark.distributed

SPLIT_GROUPS = {case.key for case in CASES if case.cuts or case.batch_coupled}
"""Methods that cut batches or select examples of a rank, so that the number of ranks shows."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What the jobs without a launch of their own found, on both ranks."""
    jobs = [name for name in JOBS if name not in ("one_gpu", "quick", "foreign")]
    first, second = torchrun(jobs, tmp_path_factory.mktemp("ddp"), timeout=900)
    return first, second


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def assert_same_logs(a: Logs, b: Logs, tolerance: float) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key, value in x.items():
            assert value == pytest.approx(y[key], abs=tolerance, rel=0), key


def test_ranks_agree(ranks: Ranks) -> None:
    """Weights bit for bit, logs and the method's state, the number of passes and all-reduces."""
    compared = 0
    for job, found in ranks[0].items():
        for name, mine in found.items():
            if not isinstance(mine, dict) or "weights" not in mine:
                continue
            theirs = ranks[1][job][name]
            assert_equal(mine["weights"], theirs["weights"])
            assert str(mine["logs"]) == str(theirs["logs"]), (job, name)
            for what in ("updates", "backwards", "reduced", "local"):
                assert mine.get(what) == theirs.get(what), (job, name, what)
            torch.testing.assert_close(
                mine.get("state"), theirs.get("state"), atol=0, rtol=0, equal_nan=True
            )
            compared += 1
    assert compared > 80


@pytest.mark.parametrize("case", GLOBAL, ids=str)
def test_global_ascent_is_one_process_on_the_joined_batch(
    ranks: Ranks, tmp_path: Path, case: tuple[str, int, bool]
) -> None:
    """Loss, norms and weights of 20 updates; also for a loss that ignores num_items_in_batch."""
    two = ranks[0]["joined_batch"][str(case)]
    one = fit(tmp_path, per_device_train_batch_size=8, **global_settings(*case))
    assert two["updates"] == one["updates"] == 20 and not two["local"]
    assert two["backwards"] == one["backwards"] == 2 * 20 * case[1]
    assert largest(two["weights"], one["weights"]) < 1e-12
    assert_same_logs(two["logs"], one["logs"], 1e-6)  # Trainer and the readings log float32


@pytest.mark.parametrize("case", [c for c in CASES if c.key not in SPLIT_GROUPS], ids=str)
def test_every_method_with_global_ascent(ranks: Ranks, tmp_path: Path, case: Any) -> None:
    two = ranks[0]["every_method"][f"{case.key} global"]
    one = fit(tmp_path, per_device_train_batch_size=8, **method_settings(case.key))
    assert largest(two["weights"], one["weights"]) < 1e-9
    assert_same_logs(two["logs"], one["logs"], 1e-5)


@pytest.mark.parametrize("key", [c.key for c in CASES if chooses_local(c.key)])
def test_a_local_ascent_costs_no_all_reduce(ranks: Ranks, key: str) -> None:
    """Methods whose update is the descent gradient average that one alone."""
    found = ranks[0]["every_method"][f"{key} auto"]
    assert found["local"] and found["reduced"] == [0 if key == "msam" else 1] * 6
    if key not in ("late_sam", "tail_sam"):  # of few updates, or of a small radius
        together = ranks[0]["every_method"][f"{key} global"]
        assert largest(found["weights"], together["weights"]) > 1e-6, "it is another perturbation"


def test_two_losses(ranks: Ranks, tmp_path: Path) -> None:
    """The ascent's own loss is averaged over ranks, too, or costs no all-reduce."""
    found, settings = ranks[0]["two_losses"], method_settings("sam")
    one = fit(tmp_path, per_device_train_batch_size=8, ascent_loss_func=steeper, **settings)
    usual = fit(tmp_path, per_device_train_batch_size=8, **settings)
    assert largest(found["global"]["weights"], one["weights"]) < 1e-12
    assert largest(one["weights"], usual["weights"]) > 1e-6
    assert_same_logs(found["global"]["logs"], one["logs"], 1e-6)
    assert found["local"]["reduced"] == [1] * 6


@pytest.mark.parametrize(("toy", "key", "accumulation"), LOCAL)
def test_local_ascent_is_msam_with_a_group_per_rank(
    ranks: Ranks, toy: str, key: str, accumulation: int
) -> None:
    """The mean of SAM's gradients, each on a rank's half; one all-reduce per update."""
    found = [rank["local_ascent"][str((toy, key, accumulation))] for rank in ranks]
    model = MODELS[toy]().to(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=SGD["learning_rate"])
    rho, eta = {"sam": (0.05, None), "asam": (0.5, 0.01)}[key]
    seen = [f["seen"] for f in found]
    assert not torch.equal(seen[0][0]["input_ids"], seen[1][0]["input_ids"])
    norms = reference.train(model, seen, optimizer, accumulation, rho, eta, clip=1.0)
    assert largest(found[0]["weights"], [p.detach() for p in model.parameters()]) < 1e-12
    assert found[0]["reduced"] == [1] * 20 and len(norms) == 20
    logged = [entry["sam/ascent_grad_norm"] for entry in found[0]["logs"]]
    assert logged == pytest.approx(norms, rel=1e-5), "the log has the mean over ranks"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_parameters_that_some_ranks_or_none_use(ranks: Ranks, accumulation: int) -> None:
    """Also under AdamW with weight decay, which must leave what nobody uses alone."""
    found = [rank["branches"][f"local {accumulation}"] for rank in ranks]
    model = Branches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=SGD["learning_rate"], weight_decay=0.1)
    seen = [f["seen"] for f in found]
    sides = [[int(batch["side"][0]) for batch in batches] for batches in seen]
    assert any(a != b for a, b in zip(*sides, strict=True)), "ranks use different heads"
    reference.train(model, seen, optimizer, accumulation, rho=0.3)
    assert largest(found[0]["weights"], [p.detach() for p in model.parameters()]) < 1e-12
    for kind in ("local", "global"):
        weights = ranks[0]["branches"][f"{kind} {accumulation}"]["weights"]
        assert torch.equal(weights[-1], Branches().never), "weight decay touched an unused one"


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("name", [*RHO_ZERO, "trainer"])
def test_rho_zero_is_the_plain_trainer(ranks: Ranks, name: str, kind: str) -> None:
    """Bit for bit on each rank: dropout, running statistics, buffers, uneven last batches."""
    for rank in ranks:
        sam, plain = (rank["rho_zero"][f"{name} {k}"] for k in (kind, "plain"))
        assert_equal(sam["weights"], plain["weights"])
        assert_equal(sam["buffers"], plain["buffers"])
        assert sam["updates"] == plain["updates"] > 0
        for key in ("loss", "grad_norm"):
            logs = ([entry[key] for entry in found["logs"]] for found in (sam, plain))
            if "accumulat" in name or name in ("dropout", "trainer"):  # another order of summation
                mine, theirs = logs
                assert mine == pytest.approx(theirs, abs=1e-6)
            else:
                mine, theirs = logs
                assert mine == theirs


@pytest.mark.parametrize("key", ["sam global", "sam auto", "looksam auto"])
def test_how_ddp_holds_gradients_makes_no_difference(ranks: Ranks, key: str) -> None:
    """Views of its buckets, no search for unused parameters, every micro-batch reduced, and
    activations computed again.
    """
    found = {way: ranks[0]["buckets"][f"{key} {way}"] for way in WAYS}
    usual = found["as they are"]
    assert found["views"]["views"] and not usual["views"], "the engine sees DDP's flag"
    assert_equal(found["views"]["weights"], usual["weights"])
    assert_equal(found["fixed use"]["weights"], usual["weights"])
    assert largest(found["every batch"]["weights"], usual["weights"]) < 1e-13
    assert largest(found["checkpointed"]["weights"], usual["weights"]) < 1e-13
    reductions = {way: f["reduced"][1] for way, f in found.items()}
    synced = {"sam global": 2, "sam auto": 1, "looksam auto": 1}[key]
    assert reductions == dict.fromkeys(WAYS, synced) | {"every batch": 2 * synced}


WAYS = ("as they are", "views", "fixed use", "every batch", "checkpointed")


@pytest.mark.parametrize("when", SCHEDULES)
def test_schedules_and_radii_decide_alike(ranks: Ranks, when: str) -> None:
    """Equal numbers of passes, some updates perturbed and some not, and equal logs."""
    mine, theirs = (rank["schedules"][when] for rank in ranks)
    shares = [entry["sam/share_perturbed_updates"] for entry in mine["logs"]]
    assert 0 < sum(shares) < len(shares) == 12
    assert mine["backwards"] == theirs["backwards"] == 12 + sum(shares)
    assert mine["local"] == (when != "adaptive"), "the gate looks at the gradient of all ranks"


def test_perturbing_every_micro_batch(ranks: Ranks) -> None:
    found = ranks[0]["schedules"]["micro"]
    assert found["backwards"] == 6 * 3 * 2


@pytest.mark.parametrize("key", ["friendly_sam", "looksam"])
def test_resume_equals_uninterrupted(ranks: Ranks, key: str) -> None:
    for rank in ranks:
        whole, resumed = (rank["resume"][f"{key} {kind}"] for kind in ("whole", "resumed"))
        assert_equal(resumed["weights"], whole["weights"])
        torch.testing.assert_close(resumed["state"], whole["state"], atol=0, rtol=0)
        assert resumed["backwards"] < whole["backwards"]


@pytest.mark.parametrize("sync", ["local", "global"])
@pytest.mark.parametrize("kind", ["ascent", "descent"])
def test_an_overflow_on_one_rank_skips_the_update_on_all(
    ranks: Ranks, kind: str, sync: str
) -> None:
    """Of six updates the third is skipped: no weight moves, the scale is halved, the rate stays."""
    for rank in ranks:
        found, never = (rank["overflow"][f"{name} {sync}"] for name in (kind, "never"))
        assert [note["moved"] for note in found["notes"]] == [True] * 2 + [False] + [True] * 3
        scales = [note["scale"] for note in found["notes"]]
        assert scales[2] == scales[1] / 2 and scales[3] == scales[2]
        rates = [note["rate"] for note in found["notes"]]
        assert rates[2] == rates[1] > rates[3]
        assert [note["moved"] for note in never["notes"]] == [True] * 6
        assert [entry["sam/skipped"] for entry in found["logs"]] == [0, 0, 1, 0, 0, 0]
        assert all(math.isfinite(entry["loss"]) for entry in found["logs"])


@pytest.mark.parametrize("words", [("rounds", "cosine", "bfloat16"), ("ignores num_items",)])
def test_only_the_first_rank_warns(ranks: Ranks, words: tuple[str, ...]) -> None:
    """Of rounding, and of a loss that is corrected."""
    said = [[m for m in rank["messages"]["said"] if words[0] in m] for rank in ranks]
    assert [len(messages) for messages in said] == [1, 0]
    assert all(word in said[0][0] for word in words)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="these processes get a GPU each")
def test_processes_that_know_nothing_of_each_other_are_refused(ranks: Ranks) -> None:
    """Without a GPU, and without having been told to use the CPU."""
    assert all(
        "use_cpu=False: 2 processes were started" in rank["messages"]["no device"] for rank in ranks
    )


def test_a_static_graph_is_refused(ranks: Ranks) -> None:
    assert "ddp_static_graph=True" in ranks[0]["messages"]["static graph"]


@pytest.mark.gpu
def test_two_processes_on_one_gpu(tmp_path: Path) -> None:
    """As on CPU, to float32; autocast and GradScaler keep the ranks equal."""
    mine, theirs = (rank["one_gpu"] for rank in torchrun(["one_gpu"], tmp_path, one_device=True))
    for kind, found in mine.items():
        assert_equal(found["weights"], theirs[kind]["weights"])
        assert all(bool(w.isfinite().all()) for w in found["weights"])
    settings = SGD | {"max_steps": 6, "sam_rho": 0.2, "use_cpu": True}
    one = fit(tmp_path, per_device_train_batch_size=8, **settings)
    cpu = [w.cpu() for w in mine["global"]["weights"]]
    assert largest(cpu, one["weights"]) < 1e-3
    model = MODELS["bert"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=SGD["learning_rate"])
    seen = [
        [{k: v.cpu() for k, v in batch.items()} for batch in found["local"]["seen"]]
        for found in (mine, theirs)
    ]
    reference.train(model, seen, optimizer, 1, 0.2, clip=1.0)
    cpu = [w.cpu() for w in mine["local"]["weights"]]
    assert largest(cpu, [p.detach() for p in model.parameters()]) < 1e-3


def test_ranks_round_perturbed_weights_alike(ranks: Ranks) -> None:
    mine, theirs = (rank["rounding"]["seen"] for rank in ranks)
    for one, other in zip(mine, theirs, strict=True):
        assert_equal(one, other)
    assert any(not torch.equal(a, b) for a, b in zip(mine[0], mine[-1], strict=True))
