# SPDX-License-Identifier: Apache-2.0
"""Gain against time on the page is that of the results, each at its method's measured price."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine, pareto, studies


def test_a_gain_and_its_price() -> None:
    name = "evidence-sst2-noise40"
    found = pareto.measured()[studies.plan(name)["title"]]
    (own,) = [p for p in found if p.method == "sam:rho=0.05"]
    lines = machine.read(machine.RESULTS / f"{name}.json")["settings"][0]["lines"]
    (line,) = [line for line in lines if line["method"] == own.method]
    assert own.gain == line["difference"]["mean"] and 1.9 < own.time < 2.1


def test_the_command_writes_the_picture_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands around the numbers stays."""
    page = tmp_path / "choosing.md"
    text = pareto.PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(pareto.BEGIN)
    page.write_text(f"{before}{pareto.BEGIN}old\n{pareto.END}{rest.partition(pareto.END)[2]}")
    monkeypatch.setattr(pareto, "PAGE", page)
    monkeypatch.setattr(pareto, "PICTURE", tmp_path / "pareto.png")
    pareto.main()
    assert page.read_text(encoding="utf-8").replace(pareto.table(pareto.measured()), "") == (
        f"{before}{pareto.BEGIN}\n\n\n{pareto.END}{rest.partition(pareto.END)[2]}"
    )
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    assert f"]({pareto.PICTURE.name})" in before, "the page shows it"
