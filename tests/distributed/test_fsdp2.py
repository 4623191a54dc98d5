# SPDX-License-Identifier: Apache-2.0
"""FSDP2 in two processes: each holds rows of every parameter, and both do what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import SAMArguments
from hf_sam.arguments import build_method
from hf_sam.engine.checkpoint import load_state
from hf_sam.landscape import Engine
from tests.cases import CASES
from tests.distributed.fsdp_jobs import (
    ADAPTED,
    FACTORS,
    GROUPS,
    HSDP,
    JOBS,
    MODELS,
    PARTS,
    SHORT,
    adapted,
    odd,
    plain,
    short,
    train,
    with_adapter,
)
from tests.distributed.launch import accelerate_launch, torchrun
from tests.distributed.test_ddp import SPLIT_GROUPS, assert_same_logs, largest
from tests.toys import assert_equal

pytestmark = pytest.mark.distributed
Ranks = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs write."""
    return tmp_path_factory.mktemp("fsdp2")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    """What every job found, on both ranks."""
    first, second = torchrun(list(JOBS), folder)
    return first, second


def one_process(folder: Path, model: str, **settings: Any) -> dict[str, Any]:
    """The same run on the joined batch of both ranks."""
    network = MODELS[model][0]().double()
    return train(folder, model, network, **settings | {"per_device_train_batch_size": 8})


@pytest.mark.parametrize("name", [*ADAPTED, "replicas"])
def test_replicated_parameters_count_once(ranks: Ranks, tmp_path: Path, name: str) -> None:
    """Adapters beside sharded weights, and FSDP2 with replicas of every shard."""
    model = "llama" if name in ADAPTED else "bert"
    network = MODELS[model][0]().double()
    network = adapted(network) if name in ADAPTED else network
    settings = short(ADAPTED.get(name, "ssam_d")) | {"per_device_train_batch_size": 8}
    assert_same(ranks[0]["fsdp2_parts"][name], train(tmp_path, model, network, **settings))


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    """What four ranks found, with two shards in two replicas."""
    return torchrun(["hsdp"], folder, processes=4)


@pytest.mark.parametrize("key", HSDP)
def test_hsdp_on_four_ranks(four: list[dict[str, Any]], tmp_path: Path, key: str) -> None:
    """As one process on the joined batch; replicas of a shard count once."""
    found = [rank["hsdp"][key] for rank in four]
    assert_same(found[0], one_process(tmp_path, "bert", **short(key)))
    for other in found[1:]:
        assert_equal(other["weights"], found[0]["weights"])
    elements = sum(w.numel() for w in found[0]["weights"])
    assert sum(rank["held"] for rank in found) == 2 * elements


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert largest(one["weights"], other["weights"]) < 1e-12
    assert_same_logs(one["logs"], other["logs"], 1e-5)  # Trainer and the readings log float32


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.key not in SPLIT_GROUPS and not c.adapters], ids=str
)
def test_every_method_is_one_process_on_the_joined_batch(
    ranks: Ranks, tmp_path: Path, case: Any
) -> None:
    """Losses, norms and weights, with tensors whose rows do not divide evenly."""
    two = ranks[0]["fsdp2_methods"][case.key]
    assert_same(two, one_process(tmp_path, "bert", **short(case.key)))


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_features_are_one_process_on_the_joined_batch(
    ranks: Ranks, tmp_path: Path, name: str
) -> None:
    """Tensor-wise radii, patterns, renewals, gates, evaluation in between, checkpointing."""
    model, more = PARTS[name]
    assert_same(ranks[0]["fsdp2_parts"][name], one_process(tmp_path, model, **SHORT | more))


@pytest.mark.parametrize("name", GROUPS)
def test_groups_and_selected_examples_are_those_of_ddp(ranks: Ranks, name: str) -> None:
    """Each rank's, also where ranks have different numbers of tokens."""
    found = ranks[0]["fsdp2_parts"]
    two, ddp = found[name], found[f"{name} ddp"]
    if name.startswith("msam"):  # of whose unshared gradient DDP reads the cosine
        for entry in two["logs"] + ddp["logs"]:
            del entry["sam/grad_cosine"]
    assert_same(two, ddp)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_accelerates_plugin_on_gpus(tmp_path: Path) -> None:
    """As one process on CPU, to float32."""
    mine, theirs = accelerate_launch("fsdp2.yaml", ["fsdp2_gpu"], tmp_path)
    found = mine["fsdp2_gpu"]["sam"]
    assert_equal(found["weights"], theirs["fsdp2_gpu"]["sam"]["weights"])
    assert 0 < found["held"] < sum(w.numel() for w in found["weights"])
    settings = {"max_steps": 4, "per_device_train_batch_size": 8}
    one = train(tmp_path, "bert", odd(), **settings)
    assert largest(found["weights"], one["weights"]) < 1e-3


def test_ranks_agree_and_each_holds_its_rows(ranks: Ranks) -> None:
    mine, theirs = (rank["fsdp2_methods"] for rank in ranks)
    for key, found in mine.items():
        assert_equal(found["weights"], theirs[key]["weights"])
        assert found["logs"] == theirs[key]["logs"]
        elements = sum(w.numel() for w in found["weights"])
        assert found["held"] + theirs[key]["held"] == elements


@pytest.mark.parametrize("key", ["friendly_sam", "ssam_d"])
def test_accelerates_plugin_and_resume(ranks: Ranks, tmp_path: Path, key: str) -> None:
    """As one process; a run that was stopped goes on as if it had not been, bit for bit."""
    found = ranks[0]["fsdp2_plugin"]
    assert 0 < found[key]["held"] < sum(w.numel() for w in found[key]["weights"])
    assert_same(found[key], one_process(tmp_path, "bert", max_steps=4, sam=key))
    assert_equal(found[f"{key} resumed"]["weights"], found[key]["weights"])


@pytest.mark.parametrize("key", FACTORS)
def test_every_method_of_factors_that_are_in_shards(ranks: Ranks, tmp_path: Path, key: str) -> None:
    """BAR scales the rows of each rank by norms of whole factors."""
    settings = {"sam": key, "max_steps": 4, "per_device_train_batch_size": 8}
    one = train(tmp_path, "bert", with_adapter().double(), **settings)
    plain = train(tmp_path, "bert", with_adapter().double(), **settings | {"sam": "none"})
    assert_same(ranks[0]["fsdp2_plugin"][key], one)
    assert largest(one["weights"], plain["weights"]) > 1e-4


@pytest.mark.parametrize("key", ["friendly_sam", "ssam_d"])
def test_state_that_was_saved_by_rows_is_read_by_one_process(
    ranks: Ranks, folder: Path, key: str
) -> None:
    """And the other way round: each reads the other's form."""
    found = ranks[0]["fsdp2_plugin"][f"{key} read"]
    params = list(odd().double().parameters())
    described = build_method(SAMArguments(sam=key)).describe()
    checkpoint = folder / "fsdp2_plugin" / key / "checkpoint-4"
    assert (checkpoint / "sam_state").is_dir()
    state = load_state(checkpoint, described, found["names"], params, Engine())
    torch.testing.assert_close(plain(state), found["state"], atol=0, rtol=0)
