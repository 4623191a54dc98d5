# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed in two processes: each on its half of every batch, and what one process computes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import CASES
from tests.distributed.fsdp_jobs import FACTORS, SHORT, short
from tests.distributed.launch import torchrun
from tests.distributed.test_ddp import SPLIT_GROUPS, assert_same_logs, largest
from tests.distributed.zero_jobs import FEATURES, JOBS, network, train
from tests.toys import assert_equal

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"),
]
Found = dict[str, Any]
OF_THEIR_OWN = SPLIT_GROUPS | {"ssam_f"}
"""Methods that cut a rank's half of a batch, or draw from its half of the data."""
WHOLE = [c.key for c in CASES if c.key not in OF_THEIR_OWN and not c.adapters]
Ranks = tuple[Found, Found]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What every job found, on both ranks."""
    first, second = torchrun(list(JOBS), tmp_path_factory.mktemp("zero"), timeout=600)
    return first, second


def assert_same(two: Found, one: Found, tolerance: float = 2e-6) -> None:
    """In float32."""
    assert largest(two["weights"], one["weights"]) < tolerance
    assert_same_logs(two["logs"], one["logs"], 1e-5)


@pytest.mark.parametrize("key", ["none", *WHOLE])
def test_every_method_is_one_process_on_the_joined_batch(
    ranks: Ranks, tmp_path: Path, key: str
) -> None:
    """Losses, norms and weights, clipped by DeepSpeed and by Trainer."""
    settings = short(key) if key != "none" else SHORT | {"sam": "none"}
    one = train(tmp_path, None, **settings)
    assert any(entry["grad_norm"] > 0.2 for entry in one["logs"]), "nothing was clipped"
    # WSAM's update is 9 there - 8 here: it has 17 times the rounding of a gradient.
    assert_same(ranks[0]["zero_methods"][key], one, 5e-6 if key == "wsam" else 2e-6)


@pytest.mark.parametrize("key", sorted(OF_THEIR_OWN))
def test_methods_that_depend_on_the_halves(ranks: Ranks, key: str) -> None:
    """Are something else than SAM, and finite; ranks stay equal."""
    found, sam = (ranks[0]["zero_methods"][k] for k in (key, "sam"))
    assert largest(found["weights"], sam["weights"]) > 1e-5
    assert all(bool(w.isfinite().all()) for w in found["weights"])


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_one_process_on_the_joined_batch(
    ranks: Ranks, tmp_path: Path, name: str
) -> None:
    one = train(tmp_path, None, network(name), **FEATURES[name])
    assert_same(ranks[0]["zero_features"][name], one, 5e-6 if name == "decoupled" else 2e-6)


@pytest.mark.parametrize("key", FACTORS)
def test_every_method_of_factors(ranks: Ranks, tmp_path: Path, key: str) -> None:
    """BAR scales them in the model, and where DeepSpeed keeps its own in parts."""
    one = train(tmp_path, None, network(key), sam=key)
    assert_same(ranks[0]["zero_features"][key], one)
    plain = train(tmp_path, None, network(key), sam="none")
    assert largest(one["weights"], plain["weights"]) > 1e-4


def test_local_ascent_is_msam_with_a_group_per_rank(ranks: Ranks, tmp_path: Path) -> None:
    settings = {"sam": "msam", "sam_options": {"micro_batches": 2}}
    one = train(tmp_path, None, gradient_accumulation_steps=1, **settings)
    assert largest(ranks[0]["zero_features"]["local"]["weights"], one["weights"]) < 5e-6


def test_ranks_agree(ranks: Ranks) -> None:
    for job in ("zero_methods", "zero_features", "zero_skips"):
        for name, found in ranks[0][job].items():
            assert_equal(found["weights"], ranks[1][job][name]["weights"])


def test_weights_in_bf16_with_masters_in_float32(ranks: Ranks) -> None:
    """rho = 0 is plain DeepSpeed, bit for bit; a perturbation is not."""
    none, zero, sam = (ranks[0]["zero_features"][f"bf16 {k}"] for k in ("none", "zero", "sam"))
    assert none["weights"][0].dtype == torch.bfloat16
    assert_equal(zero["weights"], none["weights"])
    assert largest(sam["weights"], none["weights"]) > 1e-2
    assert sam["logs"][0]["loss"] == none["logs"][0]["loss"], "the loss at w"


def test_loss_scale_in_fp16(ranks: Ranks) -> None:
    """Updates are skipped until the scale fits, as without SAM; gradients are not rounded away."""
    none, zero, sam = (ranks[0]["zero_features"][f"fp16 {k}"] for k in ("none", "zero", "sam"))
    skipped = [entry["grad_norm"] == float("inf") for entry in none["logs"]]
    assert 0 < sum(skipped) < len(skipped)
    for found in (zero, sam):
        assert [bool(entry["sam/skipped"]) for entry in found["logs"]] == skipped
    assert largest(zero["weights"], none["weights"]) < 1e-3
    assert largest(sam["weights"], none["weights"]) > 1e-2


@pytest.mark.parametrize("kind", ["ascent", "descent"])
def test_a_pass_that_overflows(ranks: Ranks, kind: str) -> None:
    """In the ascent nothing is perturbed; in the descent DeepSpeed skips, and weights are at w."""
    for rank in ranks:
        found = rank["zero_skips"][kind]
        moved = [moves for moves, _ in found["notes"]]
        rates = [rate for _, rate in found["notes"]]
        assert moved == [True, True, kind == "ascent", True, True, True]
        assert (rates[2] == rates[1]) == (kind == "descent")
        assert [e["sam/skipped"] for e in found["logs"]] == [0, 0, kind == "ascent", 0, 0, 0]
        assert all(bool(w.isfinite().all()) for w in found["weights"])


@pytest.mark.parametrize("key", ["friendly_sam", "looksam"])
def test_resume_equals_uninterrupted(ranks: Ranks, key: str) -> None:
    found = ranks[0]["zero_skips"]
    assert_equal(found[f"{key} resumed"]["weights"], found[key]["weights"])
    assert found[f"{key} resumed"]["logs"][3:] == found[key]["logs"][3:]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("zero 0", "use ZeRO-1"),
        ("zero 3", "use sam='head_sam', ZeRO-2 or FSDP2"),
        ("reentrant", "'use_reentrant': False"),
        ("autocast", "use bf16=True"),
    ],
)
def test_what_is_refused(ranks: Ranks, name: str, remedy: str) -> None:
    found = ranks[0]["zero_refusals"][name]
    assert found.startswith("NotImplementedError: hf_sam does not support DeepSpeed")
    assert remedy in found
