# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures, machine, tables

PAGE = machine.RESULTS.parent / "README.md"


def glue_result(name: str, sam: str, scores: list[float], **arguments: Any) -> dict[str, Any]:
    """Returns a result as `benchmarks.glue` writes it."""
    history = [
        {"epoch": float(i), "eval_accuracy": s, "eval_f1": s} for i, s in enumerate(scores, 1)
    ]
    return {
        "kind": "glue",
        "name": name,
        "task": "mrpc",
        "history": history,
        "best": max(history, key=lambda e: e["eval_accuracy"]),
        "final": history[-1],
        "all_results": {
            "arguments": {"sam": sam, "seed": 1, "per_device_train_batch_size": 32, **arguments},
            "sam": {"method": {"name": sam.upper(), **({} if sam == "none" else {"rho": 0.05})}},
            "max memory (MB)": 2048.0,
        },
    }


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [
        glue_result("mrpc-sam", "sam", [0.7, 0.72, 0.71], num_train_epochs=3.0),
        glue_result("mrpc-none", "none", [0.75, 0.8, 0.79], max_steps=100),
    ]


def test_score_table(runs: list[dict[str, Any]]) -> None:
    page = tables.readme({run["name"]: run for run in runs})
    assert "## What it brings: MRPC" in page
    wanted = (
        "| mrpc-sam | `sam` | 0.05 | 3 epochs, batches of 32 | 1 | acc 72.0, F1 72.0 (epoch 2) "
        "| acc 71.0, F1 71.0 | 2048 |"
    )
    assert wanted in page
    assert "| mrpc-none | `none` |  | 100 updates of 32 | 1 | acc 80.0" in page
    assert "(results/glue-mrpc.png)" in page


def test_score_picture(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    figures.draw_scores(runs, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_markdown() -> None:
    assert tables.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_the_page_is_what_the_results_say() -> None:
    found = tables.page_of(machine.RESULTS)
    assert PAGE.read_text(encoding="utf-8") == found, "run `python -m benchmarks.tables`"


def test_every_picture_of_the_page_is_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / name).is_file(), name


def test_results_hold_no_folder_of_a_machine() -> None:
    for path in machine.RESULTS.rglob("*.json"):
        result = machine.read(path)
        assert machine.without_folders(result) == result, path.name
