# SPDX-License-Identifier: Apache-2.0
"""The training files of the studies: as many wrong labels as they say."""

from __future__ import annotations

from pathlib import Path

from benchmarks import evidence


def test_prepare_flips_the_share_that_it_says(tmp_path: Path) -> None:
    import pandas as pd

    source = tmp_path / "sst2"
    source.mkdir()
    sentences = ["a " * n for n in (1, 2, 13)] * 10
    frame = pd.DataFrame({"sentence": sentences, "label": [0, 1, 1] * 10, "idx": range(30)})
    for name in ("train", "validation"):
        frame.to_parquet(source / f"{name}.parquet")
    evidence.prepare(source, tmp_path / "out", count=20)
    clean, noisy = (
        pd.read_csv(tmp_path / "out" / f"sst2-20-noise{noise}.csv") for noise in (0, 40)
    )
    assert len(clean) == 20 and (clean.sentence == noisy.sentence).all()
    assert (clean.label != noisy.label).sum() == 8
    assert clean.sentence.str.split().str.len().max() == 2  # 13 words are too many
    whole = pd.read_csv(tmp_path / "out" / "sst2-validation.csv")
    assert len(whole) == 30 and whole.sentence.str.len().is_monotonic_decreasing
