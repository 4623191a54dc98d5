# SPDX-License-Identifier: Apache-2.0
import re

from benchmarks import machine, tables

PAGE = machine.RESULTS.parent / "README.md"


def test_markdown() -> None:
    assert tables.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_the_page_is_what_the_results_say() -> None:
    found = tables.page_of(machine.RESULTS)
    assert PAGE.read_text(encoding="utf-8") == found, "run `python -m benchmarks.tables`"
    results = tables.read_results(machine.RESULTS)
    for name in ("CIFAR10.md", "EVIDENCE.md"):
        text = tables.page_of_studies(name, results)
        assert PAGE.with_name(name).read_text(encoding="utf-8") == text, f"{name}: the same"


def test_every_picture_of_the_page_is_there() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / name).is_file(), name


def test_results_hold_no_folder_of_a_machine() -> None:
    for path in machine.RESULTS.rglob("*.json"):
        result = machine.read(path)
        assert machine.without_folders(result) == result, path.name
