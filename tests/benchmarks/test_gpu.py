# SPDX-License-Identifier: Apache-2.0
"""What needs a GPU: parts in order, each within its limit, resumed, and rehearsed in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cells, gpu
from benchmarks.gpu import Part, main, page, run
from benchmarks.launches import BEGIN, END, UPDATE, counted
from tests.benchmarks.test_cells import made


def says(name: str, words: str, limit: float = 20.0) -> Part:
    return Part(name, ("-c", words), limit)


def test_parts_run_in_order_within_their_limits_and_once(tmp_path: Path) -> None:
    """One that fails, and one that goes on for ever and has a child that does, hold nobody up."""
    note = f"open({str(tmp_path / 'order')!r}, 'a').write"
    child = f"import time; time.sleep(1); {note}('child'); time.sleep(600)"
    endless = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parts = [
        says("one", f"{note}('1 '); print('fine')"),
        says("two", f"{note}('2 '); print('half'); raise SystemExit('bad | luck')"),
        says("three", endless, limit=0.5),
        says("four", f"{note}('4 ')"),
    ]
    states = run(parts, tmp_path, minutes=2)
    assert [states[p.name]["state"] for p in parts] == [
        "done", "failed with 1", "ended at its limit of 0 s", "done",
    ]  # fmt: skip
    assert (tmp_path / "order").read_text() == "1 2 4 "
    text = (tmp_path / "README.md").read_text()
    assert "| done | fine |" in text and "| failed with 1 | bad / luck |" in text
    run(parts[:2], tmp_path, minutes=2)
    assert (tmp_path / "order").read_text() == "1 2 4 2 "


def test_no_part_is_begun_when_time_is_up(tmp_path: Path) -> None:
    parts = [says("one", "print('begun')")]
    assert run(parts, tmp_path, minutes=gpu.ENOUGH / 61) == {}
    assert "| one |  | not measured |  |" in page(parts, {}, tmp_path)


def test_the_page_shows_what_there_is(tmp_path: Path) -> None:
    cell = made("sam", 2.1, device="cuda", precision="bf16")
    cell |= {"hardware": {"gpu": "G", "cpu": "C", "cores": 1, "threads": 1, "load": 0}}
    cell |= {"versions": {"torch": "2"}}
    cell["rows"][1]["launches"] = [[900, 90], [700, 70], [705, 60]]
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "one.json").write_text(json.dumps(cell))
    (tmp_path / "tests.log").write_text("FAILED tests/test_x.py::test_y - boom\n2 passed in 1 s\n")
    text = page([says("tests", "")], {"tests": {"state": "failed with 1", "seconds": 3}}, tmp_path)
    assert "G; C, 1 cores" in text and "FAILED tests/test_x.py::test_y - boom" in text
    assert "| `sam` | 2.00 | 2.10 (2.00 to 2.21) |" in text
    assert "| vit-s16 8 x 96 | `sam` | 705 | 70 |" in text
    assert ".png" not in text


def test_launches_outside_of_passes() -> None:
    """An end may be marked twice, after the forward and after the backward: the last one counts."""
    kernel = "cudaLaunchKernelExC"
    names = [
        *(kernel, BEGIN, kernel, END, "aten::mul", kernel, END, kernel, kernel, UPDATE),
        *(BEGIN, kernel, END, BEGIN, kernel, END, kernel, UPDATE, kernel),
    ]
    assert counted(reversed(list(enumerate(names)))) == [(5, 3), (3, 1)]


def test_several_rows_of_a_cell_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells.Cell("bert-1m", "sam loop:sam peer:LookSAM asam", 1, 4, label="some")
    assert cell.rows == ["none", "sam", "loop:sam", "looksam", "peer:LookSAM", "asam"]
    assert cell.name == "cpu-fp32-bert-1m-1x4-some"
    names = {c.name for c in cells.rehearsal()}
    assert len(names) < len(cells.on_cuda(gpus=1)) and all(n.startswith("cpu-") for n in names)
    assert cells.find(min(names)).device == "cpu"


def test_the_plan_begins_with_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_gpus", lambda: 1)
    given = gpu._parser().parse_args(["--output_dir", str(tmp_path), "--data_dir", str(tmp_path)])
    parts = gpu.plan(given)
    assert parts[0].name == "tests" and parts[1].name == "cuda-bf16-bert-base-32x128-all"
    accuracy = next(part for part in parts if part.name == "accuracy")
    assert f"--train_file={tmp_path}/sst2-1000-noise40.csv" in accuracy.words
    valuable = parts[: parts.index(accuracy)]
    models = ("bert-base", "vit-s16", "resnet18", "lora-0.5b", "bert-1.3b")
    assert all(any(model in part.name for part in valuable) for model in models)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_gpus", lambda: 0)
    with pytest.raises(ValueError, match="sees no GPU: give --rehearse"):
        main(["--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="--pack needs"):
        main(["--pack", str(tmp_path)])


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of part; on a machine without a GPU its tests are skipped."""
    plan = gpu.plan
    kinds = ("tests", "accuracy", "accumulation2-sam")
    monkeypatch.setattr(gpu, "plan", lambda s: [p for p in plan(s) if p.name.endswith(kinds)])
    assert main(["--rehearse", "--minutes", "20", "--output_dir", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "deselected in" in text and "## How the cost of SAM grows: CPU, bf16" in text
    assert "## Accuracy" in text and "one seed says nothing about noise" in text
    assert str(tmp_path) not in text
    assert main(["--rehearse", "--output_dir", str(tmp_path)]) == 0  # all is done
