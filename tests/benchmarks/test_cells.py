# SPDX-License-Identifier: Apache-2.0
"""Cells: planned once, measured once, shown as measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as bench
from benchmarks import cells, machine, pages
from benchmarks.cells import Cell
from benchmarks.problem import MODELS
from hf_sam import METHODS
from hf_sam.methods import asks


def test_plans_name_every_cell_once() -> None:
    for plan in (cells.on_cpu(), cells.on_cuda(gpus=2)):
        names = [cell.name for cell in plan]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
        assert {cell.model for cell in plan} <= set(MODELS)
    measured = {row.split(":")[0] for cell in plan for row in cell.rows if ":S" not in row}
    assert {key for key, kind in METHODS.items() if not asks(kind()).layers} <= measured
    names = [cell.name for cell in cells.on_cuda(gpus=1)]
    assert not any("processes" in name for name in names)


def test_what_a_rivals_cell_measures_is_not_measured_again() -> None:
    plan = [(c.model, c.method) for c in cells.on_cpu()]
    assert ("minilm", "loop:sam") in plan and ("minilm", "sam") not in plan


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Two cells of the smallest model."""
    found = [Cell("bert-1m", method, 1, 4, updates=2) for method in ("loop:sam", "looksam")]
    monkeypatch.setattr(cells, "plan", lambda: found)
    monkeypatch.setattr(cells, "MEMORY_UPDATES", 4)
    monkeypatch.setattr(pages, "FAMILY", ())
    return found


def test_make_bench_measures_once_and_writes_its_page(
    plan: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["--output_dir", str(tmp_path)]
    assert bench.main(words) == 0
    result = machine.read(tmp_path / "cpu-fp32-bert-1m-1x4-loop_sam.json")
    assert [row["text"] for row in result["rows"]] == ["none", "sam", "loop:sam"]
    assert all(len(row["seconds"]) == 2 for row in result["rows"])
    assert all(len(row["memory"]["peaks"]) == 4 for row in result["rows"])
    assert result["medians"]["none"]["ratio"] == 1.0
    assert result["command"] == f"python -m benchmarks --only {result['name']}"
    page = (tmp_path / "README.md").read_text()
    assert "| `looksam` | 1.20 |" in page and "| bert-1m 1 x 4 | `sam` | `loop:sam` |" in page
    assert "cost grows: CUDA bf16, CUDA fp16." in page

    def again(*args: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(cells, "measure", again)
    assert bench.main(words) == 0
    assert bench.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.count("done cpu-") == 2


def test_a_failed_cell_does_not_stop_the_others(
    plan: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def measure(cell: Cell, say: Any) -> dict[str, Any]:
        if cell.method == "loop:sam":
            raise RuntimeError("out of memory")
        return made(cell.method, 2.0)

    monkeypatch.setattr(cells, "measure", measure)
    assert bench.main(["--output_dir", str(tmp_path)]) == 1
    assert "loop_sam: failed: out of memory" in capsys.readouterr().err
    assert [p.name for p in tmp_path.glob("*.json")] == ["cpu-fp32-bert-1m-1x4-looksam.json"]
    with pytest.raises(ValueError, match="--only nothing: no cell's name holds it"):
        bench.main(["--only", "nothing"])


def made(method: str, *seconds: float, **fields: Any) -> dict[str, Any]:
    """Return a cell's result in which `none` takes a second per update, other rows what is said."""
    cell = Cell(**{"model": "vit-s16", "batch_size": 8, "length": 96} | {"method": method} | fields)

    def row(text: str, took: float, held: int) -> dict[str, Any]:
        spread = [0.0, 0.0, 0.0, 0.0] if text == "none" else [0.0, -0.1, 0.0, 0.1]
        on_cpu = [took * (1 + s / 2) for s in spread]
        return {
            "text": text,
            "seconds": [took * (1 + s) for s in spread],
            "cpu_seconds": [] if cell.device == "cuda" else on_cpu,
            "forwards": [2] * 4,
            "forward_examples": [16] * 4,
            "backward_examples": [16] * 4,
            "pass_seconds": [0.8 * took] * 4,
            "step_seconds": [0.9 * took] * 4,
            "mask_updates": [],
            "predicted": {"forwards": 2.0, "backwards": 2.0, "time": 2.0},
            "memory": {"peaks": [held] * 4, "mask_updates": []},
        }

    took = dict(zip(cell.rows, (1.0, *seconds), strict=True))
    return {
        "kind": "cell",
        "name": cell.name,
        "cell": {name: getattr(cell, name) for name in cell.__dataclass_fields__},
        "settings": {"updates": 4, "drop": 1, "batch_size": 8},
        "parameters": 10**6,
        "parameter_bytes": 4 * 10**6,
        "rows": [row(text, s, 4 * 10**6 * (3 + i)) for i, (text, s) in enumerate(took.items())],
    }


def test_tables() -> None:
    results = {
        r["name"]: r
        for r in (
            made("loop:sam", 2.4, 2.3),
            made("asam", 2.05),
            made("sam", 1.9, model="bert-4m"),
            made("sam", 2.2, model="bert-4m", accumulation=4),
            made("sam", 2.5, model="bert-4m", processes=2),
            made("peer:SAM", 2.6, 2.0, device="cuda", precision="bf16"),
        )
    }
    page = "\n".join(pages.sections(results))
    assert "## Time on several models: CPU, fp32" in page
    assert "## Time on several models: CUDA, bf16" in page
    assert "| `sam` | 2.00 | 2.40 (2.34 to 2.46) |" in page
    assert "Share of a `sam` update beside its passes: 10 % on vit-s16 8 x 96." in page
    assert "| 2.40 (2.34 to 2.46) | 2.30 (2.24 to 2.36) | within noise | 1.00 / 2.00 |" in page
    assert "| 2.60 (2.47 to 2.73) | 2.00 (1.90 to 2.10) | **yes** |" in page
    assert "| bert-4m 8 x 96, accumulation 4 | 1.0 M | 2.20 " in page
    assert "| bert-4m 8 x 96, processes 2 | 1.0 M | 2.50 " in page
    assert "cost grows: CUDA fp16." in page


def held(task: str, **sizes: int) -> dict[str, Any]:
    return {
        "task": task, "model": "minilm", "device": "cpu", "model_bytes": 100 * pages.MB,
        "parameter_bytes": 50 * pages.MB, "command": f"measure {task}",
        "settings": {"updates": 20, "batch_size": 8, "length": 128, "bf16": False},
        "rows": [
            {"text": text, "memory": {"peaks": [1, size * pages.MB]}}
            for text, size in sizes.items()
        ],
    }  # fmt: skip


def test_memory_table() -> None:
    results = [held("mrpc", none=300, sam=355), held("cola", none=200)]
    table = pages.memory_table(results).splitlines()
    assert table[0] == "| method | MRPC | COLA |"
    assert table[2:] == ["| `none` | 400 | 300 |", "| `sam` | 455 (+55, 1.10 P) |  |"]
    section = pages.memory_section(results).replace("\n", " ")
    assert "in MB and in P (50 MB)" in section and "in 2 updates of 8" in section
    assert "measure mrpc measure cola" in section
