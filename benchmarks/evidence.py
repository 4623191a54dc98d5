# SPDX-License-Identifier: Apache-2.0
r"""The training files of the studies of few examples and wrong labels, from SST-2.

python -m benchmarks.evidence glue_data --output_dir data

The studies themselves are plans (`evidence-*.toml`); their page is EVIDENCE.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

NOISES = (0, 20, 40)


def prepare(source: Path, folder: Path, count: int = 1000, words: int = 12) -> None:
    """Write training files with 0, 20 and 40 % flipped labels, and the validation set as it is.

    Args:
        source: folder of SST-2 with train.parquet and validation.parquet.
        folder: gets sst2-1000-noise40.csv and so on, and sst2-validation.csv.
        count: training phrases, drawn with seed 0.
        words: longer phrases are left out, so that a run takes minutes on a CPU.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    train, validation = (
        Dataset.from_parquet(str(source / f"{name}.parquet")).to_pandas()[["sentence", "label"]]
        for name in ("train", "validation")
    )
    train = train[train.sentence.str.split().str.len() <= words].reset_index(drop=True)
    drawn = train.iloc[np.random.default_rng(0).permutation(len(train))[:count]]
    drawn = drawn.reset_index(drop=True)
    order = np.random.default_rng(0).permutation(count)
    for noise in NOISES:
        noisy, flipped = drawn.copy(), order[: count * noise // 100]
        noisy.loc[flipped, "label"] = 1 - noisy.loc[flipped, "label"]
        noisy.to_csv(folder / f"sst2-{count}-noise{noise}.csv", index=False)
    by_length = validation.sort_values("sentence", key=lambda s: -s.str.len(), kind="stable")
    by_length.to_csv(folder / "sst2-validation.csv", index=False)  # so that little is padded


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=raw
    )
    parser.add_argument("data_dir", type=Path, help="has sst2/train.parquet")
    parser.add_argument("--output_dir", type=Path, default=Path("data"))
    given = parser.parse_args(argv)
    prepare(given.data_dir / "sst2", given.output_dir)


if __name__ == "__main__":
    main()
