# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from benchmarks import machine


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "--data_dir /home/somebody/data/glue --task_name mrpc",
            "--data_dir glue --task_name mrpc",
        ),
        ("--data_dir=/mnt/glue/", "--data_dir=glue"),
        ("--x '/a b/c d'", "--x 'c d'"),
        ("~/models/minilm", "minilm"),
        ("models/minilm ./x ../y", "models/minilm ./x ../y"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1 / 3", "1 / 3"),
    ],
)
def test_absolute_folders_are_left_out(before: str, after: str) -> None:
    assert machine.without_folders({"x": [before, 3]}) == {"x": [after, 3]}


def test_numbers_are_on_one_line_and_come_back(tmp_path: Path) -> None:
    result = {"a": [1, -2.5, 3e-05], "b": ["x, y", "[1,  2]"], "c": [{"d": [1]}], "e": []}
    machine.write(tmp_path / "x.json", result)
    assert '"a": [1, -2.5, 3e-05],' in (tmp_path / "x.json").read_text()
    assert machine.read(tmp_path / "x.json") == result


def test_hardware_and_versions() -> None:
    assert machine.hardware()["cores"] >= 1
    assert {"python", "torch", "transformers", "hf_sam"} <= set(machine.versions())
