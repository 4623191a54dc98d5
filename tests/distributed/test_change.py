# SPDX-License-Identifier: Apache-2.0
"""Another number of processes goes on with the method's state; and one of two that is killed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import SAMArguments, Vector
from hf_sam.arguments import build_method
from hf_sam.engine.checkpoint import load_state
from hf_sam.landscape import Engine
from tests.distributed import zero_jobs
from tests.distributed.change_jobs import (
    KILLED,
    SHARDED,
    STATEFUL,
    UPDATES,
    ZERO,
    convert,
    ddp_leg,
    leg,
    settings_of,
)
from tests.distributed.fsdp_jobs import odd
from tests.distributed.launch import torchrun
from tests.toys import MODELS, assert_equal, examples, make_trainer

pytestmark = pytest.mark.distributed
Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all launches train."""
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def legs(folder: Path) -> dict[str, list[list[Found]]]:
    """What each rank found in each leg: DDP on 1, 2, 4 and 1 processes, FSDP2 on 2, 4 and 1."""
    ddp = [[ddp_leg(folder / "ddp_leg", 2)]]
    both = [torchrun(["ddp_leg", "fsdp2_leg"], folder, processes=n) for n in (2, 4)]
    ddp += [[rank["ddp_leg"] for rank in found] for found in both]
    ddp.append([ddp_leg(folder / "ddp_leg", UPDATES)])
    both.append(torchrun(["fsdp2_leg"], folder, processes=1))
    return {"ddp": ddp, "fsdp2": [[rank["fsdp2_leg"] for rank in found] for found in both]}


def saved(folder: Path, key: str, model: Any) -> Found:
    """Return the method's state in a checkpoint by name, read by one process."""
    names, params = zip(*(n for n in model.named_parameters() if n[1].requires_grad), strict=True)
    options = STATEFUL[key].options or None
    described = build_method(SAMArguments(sam=key, sam_options=options)).describe()
    state = load_state(folder, described, names, params, Engine())
    return {
        key: dict(zip(names, value, strict=True)) if isinstance(value, Vector) else value
        for key, value in state.items()
    }


def assert_chain(chain: list[list[Found]], key: str, ranks: list[int], folder: Path) -> None:
    """Each leg begins with the state that the one before saved, bit for bit, and says so once."""
    model = MODELS[STATEFUL[key].toy("bert")]() if "ddp" in folder.name else odd()
    model = model.double()
    for i, found in enumerate(chain[1:], 1):
        assert len(found) == ranks[i]
        before = saved(folder / key / f"checkpoint-{2 * i}", key, model)
        assert before, "there is a state"
        for rank, mine in enumerate(found):
            torch.testing.assert_close(mine[key]["loaded"], before, atol=0, rtol=0)
            assert_equal(mine[key]["weights"], found[0][key]["weights"])
            assert len(mine[key]["said"]) == (rank == 0)
        (line,) = found[0][key]["said"]
        assert f"processes={ranks[i - 1]}, and training goes on with processes={ranks[i]}:" in line
        assert line.endswith("is kept.")


@pytest.mark.parametrize("key", STATEFUL)
def test_ddp_goes_on_with_other_processes(
    legs: dict[str, Any], folder: Path, key: str, tmp_path: Path
) -> None:
    """From one to two, four and one again: as one process that was never stopped, to rounding."""
    assert_chain(legs["ddp"], key, [1, 2, 4, 1], folder / "ddp_leg")
    toy = {"model": STATEFUL[key].toy("bert"), "dtype": torch.float64}
    whole = leg(make_trainer(tmp_path, **settings_of(STATEFUL[key]), **toy), UPDATES, None)
    assert_equal(legs["ddp"][-1][0][key]["weights"], whole["weights"], 1e-9)


@pytest.mark.parametrize("key", SHARDED)
def test_fsdp2_goes_on_with_other_shards(
    legs: dict[str, Any], folder: Path, key: str, tmp_path: Path
) -> None:
    """From two to four and one: as one process without shards, to rounding."""
    assert_chain(legs["fsdp2"], key, [2, 4, 1], folder / "fsdp2_leg")
    settings = settings_of(STATEFUL[key], seed=3, data=examples("bert"), dtype=torch.float64)
    whole = leg(make_trainer(tmp_path, built=odd(), **settings), 6, None)
    assert_equal(legs["fsdp2"][-1][0][key]["weights"], whole["weights"], 1e-9)


@pytest.fixture(scope="module")
def zero(folder: Path) -> dict[int, list[Found]]:
    """What each rank of two found, and of four and of one that went on from there."""
    if find_spec("deepspeed") is None:
        pytest.skip("needs the extra `deepspeed`")
    found = {2: torchrun(["zero_leg"], folder, processes=2)}
    for key in ZERO:
        convert(folder / "zero_leg" / key / "checkpoint-4")
    found |= {n: torchrun(["zero_leg"], folder, processes=n) for n in (4, 1)}
    return {n: [rank["zero_leg"] for rank in ranks] for n, ranks in found.items()}


@pytest.mark.parametrize("processes", [4, 1])
@pytest.mark.parametrize("key", ZERO)
def test_zero_goes_on_from_a_universal_checkpoint(
    zero: dict[int, list[Found]], folder: Path, key: str, processes: int, tmp_path: Path
) -> None:
    """DeepSpeed refuses its own form, before anything of the method is read; the method's state is
    the same in both.
    """
    before = saved(folder / "zero_leg" / key / "checkpoint-4", key, odd())
    for rank, mine in enumerate(zero[processes]):
        assert (
            f"world size of 2 but the current world size is {processes}" in mine[f"{key} refused"]
        )
        torch.testing.assert_close(mine[key]["loaded"], before, atol=0, rtol=0)
        assert len(mine[key]["said"]) == (rank == 0)
    settings = settings_of(STATEFUL[key], gradient_accumulation_steps=1)
    whole = leg(zero_jobs.make(tmp_path, None, **settings), UPDATES, None)
    assert_equal(zero[processes][0][key]["weights"], whole["weights"], 5e-6)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What both ranks found after the second one was killed twice."""
    folder = tmp_path_factory.mktemp("killed")
    for moment in KILLED:
        with pytest.raises(AssertionError, match="ended with"):
            torchrun([f"dies_in_{moment}"], folder)
    return [rank["goes_on"] for rank in torchrun(["goes_on"], folder)]


@pytest.mark.parametrize("moment", KILLED)
def test_one_of_two_is_killed(killed: list[Found], moment: str) -> None:
    """The run goes on from the newest checkpoint that is whole, and nothing shows, bit for bit."""
    for rank in killed:
        found = rank[moment]
        assert found["newest"] == "checkpoint-4"
        assert (
            found["faults"].get("checkpoint-6", "")
            == {
                "pass": "",
                "save": "rng_state_1.pth is missing: its process ended while it saved",
            }[moment]
        )
        assert_equal(found["again"]["weights"], found["whole"]["weights"])
        torch.testing.assert_close(found["again"]["state"], found["whole"]["state"], atol=0, rtol=0)
