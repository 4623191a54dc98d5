# SPDX-License-Identifier: Apache-2.0
r"""What works with what, read off the reports of test runs: docs/capabilities.json.

python -m pytest -n 2 --junitxml=quick.xml
python -m pytest -m distributed --junitxml=distributed.xml
python -m tests.capabilities quick.xml distributed.xml

A cell says "yes" where every test of that method and column passed, "no" with the reason where it
is skipped for one, and "unknown" where nothing was run. A failed test is an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch
import transformers

from hf_sam import METHODS

OUT = Path(__file__).parents[1] / "docs/capabilities.json"
COLUMNS = {
    "one process": r"tests\.laws\.test_(bare|trainer)::.*",
    "resumes": r"tests\.laws\..*::test_resum.*",
    "bf16 and fp16": r"tests\.test_precision::.*",
    "LoRA": r"tests\.test_peft::.*",
    "torch.compile": r"tests\.test_compile::.*",
    "DDP": r"tests\.distributed\.test_ddp::test_every_method.*",
    "FSDP2": r"tests\.distributed\.test_fsdp2::test_every_method.*",
    "ZeRO-1, ZeRO-2": r"tests\.distributed\.test_zero::test_(every_method|methods_that).*",
    "ZeRO-3": r"tests\.distributed\.test_zero3::.*",
}
"""Columns of the table, and the tests that stand for them."""

Tried = tuple[str, str, str]
"""The name of a test, a method's key, and "passed" or the reason for which it was skipped."""


def main(reports: Iterable[str]) -> None:
    """Write the table of all reports."""
    tried = [one for report in reports for one in read(report)]
    cells = {
        key: {column: cell(tried, key, pattern) for column, pattern in COLUMNS.items()}
        for key in METHODS
        if key != "none"
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"versions": versions, "columns": list(COLUMNS), "cells": cells}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def read(report: str) -> Iterator[Tried]:
    """Yield the tests of a JUnit report that have a method's key among their parameters.

    Raises:
        ValueError: a test failed.
    """
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            raise ValueError(f"{name} failed, so {report} says nothing about what works")
        skipped = case.find("skipped")
        result = "passed" if skipped is None else skipped.get("message", "skipped")
        words = re.split(r"[\[\]\- ]", name.partition("[")[2])
        yield from ((name, key, result) for key in METHODS if key in words)


def cell(tried: Iterable[Tried], key: str, pattern: str) -> str:
    """Return what the tests of a column say about a method."""
    results = [r for name, k, r in tried if k == key and re.fullmatch(pattern, name)]
    if not results:
        return "unknown"
    return "yes" if "passed" in results else f"no: {results[0]}"


if __name__ == "__main__":
    main(sys.argv[1:])
