# SPDX-License-Identifier: Apache-2.0
"""The CIFAR-10 runs on a handful of images: resuming, taking turns, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import cifar10, machine
from benchmarks.cifar10_page import images_per_second, page, seconds_per_update, waiting
from tests.vision.conftest import TINY, table


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What all command lines here have."""
    table(24).to_parquet(tmp_path / "train-0.parquet")
    table(9, 60).to_parquet(tmp_path / "test.parquet")
    places = {"data_dir": tmp_path, "results": tmp_path / "r", "output_dir": tmp_path / "o"}
    places["page"] = tmp_path / "PAGE.md"
    own = {"config_overrides": TINY, "per_device_train_batch_size": 8}
    named = [f"--{name}={value}" for name, value in (places | own).items()]
    return [*named, "--use_cpu"]


def test_a_run_in_pieces_equals_one_in_whole(words: list[str], tmp_path: Path, capsys: Any) -> None:
    run = ["--method", "sam", "--seed", "3", "--epochs", "3"]
    assert cifar10.main([*words, *run, "--minutes", "0"]) is None
    assert "stopped after epoch 1 of 3; go on with the" in capsys.readouterr().out
    path = cifar10.main([*words, *run])
    assert path == tmp_path / "r" / "cifar10-sam-seed3-3epochs.json"
    result = machine.read(path)
    assert (result["method"], result["seed"], result["train_images"]) == ("sam", 3, 24)
    assert result["all_results"]["sam"]["method"]["rho"] == 0.05
    assert "--config_overrides=" in result["options"]
    assert len(result["history"]["eval_accuracy"]) == len(result["history"]["loss"]) == 3
    assert result["accuracy"] == pytest.approx(100 * result["history"]["eval_accuracy"][-1])
    assert str(tmp_path) not in path.read_text()
    whole = cifar10.main([*words, *run, "--tag", "whole"])
    assert whole is not None
    assert machine.read(whole)["history"] == result["history"]
    assert cifar10.main([*words, *run]) == path
    assert "there is a result already" in capsys.readouterr().out


def test_methods_take_turns(words: list[str]) -> None:
    path = cifar10.main([*words, "--speed", "none", "sam", "--updates", "4", "--drop", "1"])
    assert path is not None
    result = machine.read(path)
    assert {m: row["backwards"] for m, row in result["rows"].items()} == {
        "none": [1] * 4,
        "sam": [2] * 4,
    }
    assert result["rows"]["sam"]["forward_examples"] == [16] * 4
    assert 0 < waiting(result, "none") < 1
    median = sorted(result["rows"]["sam"]["seconds"][1:])[1]
    assert images_per_second(result, "sam") == pytest.approx(8 / median)
    with pytest.raises(ValueError, match="--speed sam .*: give none"):
        cifar10.main([*words, "--speed", "sam"])


def result(method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "cifar10",
        "command": f"command {method} {seed}",
        "method": method,
        "seed": seed,
        "parameters": 1000,
        "train_images": 50,
        "test_images": 10,
        "accuracy": accuracy,
        "best_accuracy": accuracy + 1,
        "history": {"eval_accuracy": [0.1, 0.2]},
        "hardware": {"cpu": "C", "threads": 1},
        "versions": {"torch": "2"},
        "all_results": {"train max memory (MB)": 100.0 + seed},
    } | more


def speed(**more: Any) -> dict[str, Any]:
    rows = {
        "none": {"seconds": [9.0, 1.0, 1.0], "forward_examples": [8] * 3},
        "sam": {"seconds": [9.0, 2.0, 2.2], "forward_examples": [16] * 3},
    }
    for row in rows.values():
        row["input_seconds"] = [1.0, 0.1, 0.1]
    base = {"kind": "cifar10-speed", "command": "timing", "parameters": 1000, "batch_size": 8}
    base |= {"updates": 3, "drop": 1, "hardware": {"cpu": "C", "threads": 1}, "rows": rows}
    return base | more


def test_the_page_says_what_was_measured_and_what_was_not() -> None:
    runs = [result("sam", 1, 60.0), result("sam", 2, 62.0), result("none", 1, 50.0)]
    text = page([*runs, speed()])
    assert "## ResNet-18 on a GPU\n\nNot measured." in text
    assert text.count("Not measured.") == 1 and page([]).count("Not measured.") == 2
    assert "| `none` | 50.00 | 51.00 | 1 | 1.00 | 101 |\n" in text
    assert "| `sam` | 61.00 ± 1.41 | 62.00 ± 1.41 | 2 | 0.48 | 102 |\n" in text
    assert (
        "1,000 weights, 50 training and 10 test images, 2 epochs. C, 1 thread(s); torch 2" in text
    )
    assert "waits for its batches 10.0 % of the time" in text
    other = result("sam", 3, 70.0, options="--sam_rho 0.1")  # is not averaged with the recipe's
    text = page([*runs, other, speed()])
    assert "| `sam` | 61.00 ± 1.41 | 62.00 ± 1.41 | 2 | 0.48 | 102 |\n" in text
    assert "| `sam`, `--sam_rho 0.1` | 70.00 | 71.00 | 1 |  | 103 |\n" in text
    gpu = {"hardware": {"gpu": "G"}}
    text = page([result("none", 1, 95.0, **gpu), speed(), *runs])  # published numbers are beside it
    assert "Not measured" not in text
    assert "| `none` | 95.00 | 96.00 | 1 |  | 101 | 95.41 | 1.00 |" in text


def test_methods_with_updates_of_two_kinds_are_averaged() -> None:
    row = {"seconds": [9.0, 1.0, 1.0, 2.0, 1.0], "forward_examples": [8, 8, 8, 16, 8]}
    assert seconds_per_update({"rows": {"looksam": row}, "drop": 1}, "looksam") == 1.25


def test_the_page_is_written_from_the_files(words: list[str], tmp_path: Path) -> None:
    machine.write(tmp_path / "r" / "cifar10-a.json", result("esam", 1, 70.0))
    assert cifar10.main([*words, "--table"]) == tmp_path / "PAGE.md"
    assert "| `esam` | 70.00" in (tmp_path / "PAGE.md").read_text()


def test_the_page_is_what_the_results_say() -> None:
    found = page(machine.read(path) for path in sorted(machine.RESULTS.glob("cifar10-*.json")))
    assert cifar10.PAGE.read_text(encoding="utf-8") == found, "run it with --table"


def test_a_folder_without_data(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no file train"):
        cifar10.main([*words, "--method", "sam", "--data_dir", str(tmp_path / "r")])
