# SPDX-License-Identifier: Apache-2.0
"""Two processes, in short: part of the quick suite; and the files of `accelerate_configs/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.distributed import reference
from tests.distributed.jobs import QUICK, fit
from tests.distributed.launch import ROOT, accelerate_launch, fork, torchrun
from tests.toys import assert_equal, bert


def check(ranks: list[dict[str, Any]], folder: Path) -> None:
    """Global ascent is one process on the joined batch, local the mean of the ranks' SAM."""
    mine, theirs = (rank["quick"] for rank in ranks)
    for kind in ("global", "local"):
        assert_equal(mine[kind]["weights"], theirs[kind]["weights"])
        assert mine[kind]["logs"] == theirs[kind]["logs"]
    one = fit(folder, **QUICK | {"per_device_train_batch_size": 8})
    assert_equal(mine["global"]["weights"], one["weights"], 1e-12)
    model = bert().to(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=QUICK["learning_rate"])
    seen = [found["local"]["seen"] for found in (mine, theirs)]
    reference.train(model, seen, optimizer, QUICK["gradient_accumulation_steps"], 0.05, clip=1.0)
    assert_equal(mine["local"]["weights"], [p.detach() for p in model.parameters()], 1e-12)
    assert mine["local"]["reduced"] == [1] * 4 and mine["global"]["reduced"] == [2] * 4


def test_two_processes(tmp_path: Path) -> None:
    check(fork(["quick"], tmp_path), tmp_path / "one")


@pytest.mark.distributed
def test_torchrun(tmp_path: Path) -> None:
    check(torchrun(["quick"], tmp_path), tmp_path / "one")


@pytest.mark.distributed
def test_accelerate_launch_on_cpu(tmp_path: Path) -> None:
    check(accelerate_launch("ddp_cpu.yaml", ["quick"], tmp_path), tmp_path / "one")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_accelerate_reads_the_file(path: Path) -> None:
    """Unknown keys are refused by accelerate itself; it starts processes only for these types."""
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(path))
    kinds = {"fsdp": "FSDP", "zero": "DEEPSPEED"}
    kind = kinds.get(path.stem.rstrip("123"), "MULTI_GPU")
    assert config.num_processes == 2 and config.distributed_type == kind
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    assert config.use_cpu == ("cpu" in path.name)
    assert f"accelerate_configs/{path.name}" in path.read_text(), "its own command"
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"
