# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.matrix [NAME ...]` tries every method on every set-up.

It writes the table tests/MATRIX.md if no set-up is named, and exits with 1 if something is wrong.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers

from .setups import SETUPS
from .study import Row, study
from .table import table

OUT = Path(__file__).parent.parent / "MATRIX.md"


def main() -> int:
    """Try the set-ups that are named, or all of them; return the exit code."""
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or every Trainer spends a third of a second on the libraries
    rows: dict[str, Row] = {}
    for name in sys.argv[1:] or SETUPS:
        start = time.time()
        rows[name] = study(SETUPS[name])
        print(f"{name}: {rows[name].loss}, {time.time() - start:.1f} s", flush=True)
        for wrong in rows[name].wrong:
            print(f"  WRONG {wrong}", flush=True)
        if not sys.argv[1:]:
            OUT.write_text(table(rows, transformers.__version__), encoding="utf-8")
    return int(any(row.wrong for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
