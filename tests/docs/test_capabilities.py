# SPDX-License-Identifier: Apache-2.0
"""The table of what works with what says what the reports of tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.capabilities import cell, read

REPORT = """<testsuites><testsuite>
<testcase classname="tests.laws.test_bare" name="test_return[sam-1]"/>
<testcase classname="tests.laws.test_bare" name="test_other"/>
<testcase classname="tests.distributed.test_ddp" name="test_every_method[ssam_f]">
<skipped message="no room"/></testcase>
{}</testsuite></testsuites>"""
FAILED = (
    '<testcase classname="tests.laws.test_bare" name="test_return[asam-1]"><failure/></testcase>'
)


def test_cells(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(""), encoding="utf-8")
    tried = list(read(str(report)))
    assert [(key, result) for _, key, result in tried] == [("sam", "passed"), ("ssam_f", "no room")]
    assert cell(tried, "sam", r"tests\.laws\..*") == "yes"
    assert cell(tried, "ssam_f", r"tests\.distributed\..*") == "no: no room"
    assert cell(tried, "ssam_f", r"tests\.laws\..*") == "unknown"


def test_a_failed_test_is_an_error(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(FAILED), encoding="utf-8")
    with pytest.raises(ValueError, match=r"test_return\[asam-1\] failed"):
        list(read(str(report)))
