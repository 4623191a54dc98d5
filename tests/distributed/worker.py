# SPDX-License-Identifier: Apache-2.0
"""One process of several: runs the named jobs and writes what they found to `FOLDER/rankN.pt`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from tests.distributed.jobs import JOBS


def main() -> None:
    """Run `worker.py FOLDER JOB...`."""
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    rank = os.environ["RANK"]
    found = {}
    for name in names:
        started = time.monotonic()
        found[name] = JOBS[name](folder / name)
        print(f"{name} took {time.monotonic() - started:.1f} s", flush=True)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
