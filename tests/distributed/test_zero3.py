# SPDX-License-Identifier: Apache-2.0
"""ZeRO-3 in two processes, for methods of one pass: what one process computes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import torchrun
from tests.distributed.test_ddp import assert_same_logs, largest
from tests.distributed.zero_jobs import ZERO3_RUNS, network, train, zero3_settings
from tests.toys import assert_equal

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found."""
    return [rank["zero3"] for rank in torchrun(["zero3"], tmp_path_factory.mktemp("zero3"))]


@pytest.mark.parametrize("name", ZERO3_RUNS)
def test_it_is_one_process_on_the_joined_batch(
    ranks: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """In float32: losses, norms and weights, which both ranks gather alike."""
    one = train(tmp_path, None, network(name), **zero3_settings(name))
    mine, theirs = (rank[name] for rank in ranks)
    assert_equal(mine["weights"], theirs["weights"])
    assert largest(mine["weights"], one["weights"]) < 5e-6
    assert_same_logs(mine["logs"], one["logs"], 1e-5)
    if name != "none":
        usual = train(tmp_path, None, network(name), **zero3_settings(name) | PLAIN)
        assert largest(one["weights"], usual["weights"]) > 1e-4


PLAIN = {"sam": "none", "sam_rho": None, "sam_when": "always"}


def test_what_needs_the_weights_is_refused(ranks: list[dict[str, Any]]) -> None:
    """Also a sum of several gradients, one for each micro-batch."""
    assert "ZeRO-3, for all other methods: its weights exist inside a" in ranks[0]["micro"]
