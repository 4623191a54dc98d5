# SPDX-License-Identifier: Apache-2.0
"""Other people's trainers in two processes, whose losses gather their metrics over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import torchrun
from tests.test_foreign import MOVING, NEEDS_SENTENCES, NEEDS_TRL, ON_RANKS, all_weights, run
from tests.toys import assert_equal

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


def test_two_processes(tmp_path: Path) -> None:
    """The ranks make the same passes, record the clean one, and are one process on all data."""
    pytest.importorskip("trl", reason=NEEDS_TRL)
    pytest.importorskip("sentence_transformers", reason=NEEDS_SENTENCES)
    mine, theirs = (rank["foreign"] for rank in torchrun(["foreign"], tmp_path, timeout=500))
    for name in ON_RANKS:
        assert mine[f"{name} still"]["local"], "each rank ascends along its own gradient"
        for kind in ("plain", "still", "moving"):
            assert_equal(mine[f"{name} {kind}"]["weights"], theirs[f"{name} {kind}"]["weights"])
        records = zip(mine[f"{name} still"]["logs"], mine[f"{name} plain"]["logs"], strict=True)
        assert all(one == pytest.approx(other, rel=1e-6) for one, other in records)
        one = run(name, tmp_path / name, **MOVING)
        assert_equal(mine[f"{name} moving"]["weights"], all_weights(one), 1e-6)
