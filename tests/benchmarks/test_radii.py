# SPDX-License-Identifier: Apache-2.0
"""The tables of radii are those of the results and of the papers, and the page has them."""

from __future__ import annotations

from benchmarks import radii


def test_the_page_is_up_to_date() -> None:
    text = radii.PAGE.read_text(encoding="utf-8")
    found = text.partition(radii.BEGIN)[2].partition(radii.END)[0]
    assert found == radii.tables(), "run python -m benchmarks.radii"


def test_a_loss_is_shown_losing() -> None:
    """At 0.05 all three seeds of MRPC lose."""
    rows = list(radii.ours())
    first = next(i for i, row in enumerate(rows) if "MRPC" in row[0])
    (row,) = [row for row in rows[first : first + 12] if row[1] == "`sam:rho=0.05`"]
    assert row[2:] == ("3", "-3.3 ± 0.3", "0 of 3")


def test_published_radii_have_a_source() -> None:
    rows = list(radii.theirs())
    assert ("SqueezeBERT on MRPC, tuned, AdamW, batch 16, 10 epochs", "0.0001") in [
        row[:2] for row in rows
    ]
    assert all(row[3] for row in rows)
