# SPDX-License-Identifier: Apache-2.0
"""The formulas against the measured cells, the page of many devices, and what processes send."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import machine, scale
from benchmarks.costs import costs
from hf_sam.arguments import by_name, parse_options
from hf_sam.estimate import rehearsal
from hf_sam.estimate.costs import Setting, sent
from tests.cases import CASES
from tests.distributed.launch import torchrun
from tests.distributed.traffic_jobs import ROWS, deep

Cell = tuple[str, dict[str, Any], dict[str, Any]]
MANY_PASSES = {"msam"}
"""Its groups of two examples run slower than their share of a batch."""
DRAWS = {"rsam"}
"""On a CPU its noise takes a tenth of the time."""
CHANGED = {"looksam", "msam"}
"""Methods that need less memory than when their cells were measured."""


def cells() -> list[Cell]:
    """Every measured row: the cell's name, the row, and the cell."""
    found = []
    for path in sorted((machine.RESULTS / "cells").glob("*.json")):
        cell = machine.read(path)
        found += [
            (path.stem, row, cell) for row in cell["rows"] if row.get("sam") not in (None, "none")
        ]
    return found


LONG = [c for c in cells() if "minilm-8x64" in c[0] and c[1]["sam"] not in MANY_PASSES | DRAWS]
KEPT = [c for c in cells() if c[1]["sam"] not in CHANGED | {"esam"} and "lora" not in c[0]]


@pytest.mark.parametrize(("name", "row", "cell"), LONG, ids=lambda x: x if type(x) is str else "")
def test_time_is_within_a_tenth_where_passes_are_long(
    name: str, row: Any, cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "UPDATES", 100)
    method = by_name(row["sam"], None, parse_options(row["options"]))
    found = rehearsal.passes(method, cell["settings"]["batch_size"])
    measured = costs(cell)[row["text"]]
    assert found.time == pytest.approx(measured.cpu, rel=0.11 if row["sam"] == "looksam" else 0.1)


@pytest.mark.parametrize(("name", "row", "cell"), KEPT, ids=lambda x: x if type(x) is str else "")
def test_memory_is_within_a_tenth(name: str, row: Any, cell: Any) -> None:
    """In P of the table of methods, which the stand-in is held against."""
    (case,) = [case for case in CASES if case.key == row["sam"]]
    extra = costs(cell)[row["text"]].extra
    assert extra is not None
    assert extra / cell["parameter_bytes"] == pytest.approx(case.mask_p or case.extra_p, rel=0.1)


def test_the_page_is_up_to_date() -> None:
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page(), "run python -m benchmarks.scale"


def test_a_cell_by_hand() -> None:
    """7 B weights on 8 devices: 28 GB of gradients, of which a ring sends 7/8, twice for a sum."""
    assert scale.cell("ddp", 7e9, 8, True) == "28 GB; 49 (49)"
    assert scale.cell("ddp", 7e9, 8, False) == "28 GB; 98 (49)"
    assert scale.cell("fsdp2", 7e9, 8, False) == "3.5 GB; 73.5 (36.8)"


@pytest.mark.distributed
def test_two_processes_send_what_the_formulas_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Elements per update, counted by torch's profiler, within a tenth."""
    weights = sum(p.numel() for p in deep().parameters())
    jobs = ["ddp_traffic", "fsdp2_traffic", "zero_traffic"]
    found = torchrun(jobs, tmp_path_factory.mktemp("traffic"), timeout=900)[0]
    for engine, job in zip(("ddp", "fsdp2", "zero2"), jobs, strict=True):
        setting = Setting(weights, weights, 2, engine, "fp32")
        for name, counted in found[job].items():
            gradients = {"none": 1.0, "looksam": 1.5}.get(name, 2.0)
            averaged = 1.0 if name in ("none", "local") else gradients
            wanted = sent(setting, gradients, averaged, plain=ROWS[name]["sam"] == "none")
            assert counted["sent"] == pytest.approx(wanted / setting.sent, rel=0.1), (engine, name)
