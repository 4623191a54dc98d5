# SPDX-License-Identifier: Apache-2.0
"""One process of several: runs the named jobs and writes what they found to `FOLDER/rankN.pt`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ONE_DEVICE = "--one-device"
if ONE_DEVICE in sys.argv:  # accelerate takes the device of this number
    os.environ["LOCAL_RANK"] = "0"

import torch  # noqa: E402

from tests.distributed import fsdp_jobs, jobs, traffic_jobs, zero_jobs  # noqa: E402

JOBS = jobs.JOBS | fsdp_jobs.JOBS | fsdp_jobs.GPU_JOBS | fsdp_jobs.FOUR
JOBS |= zero_jobs.JOBS | zero_jobs.ZERO3 | traffic_jobs.JOBS


def main() -> None:
    """Run `worker.py FOLDER JOB... [--one-device]`."""
    torch.set_num_threads(1)
    folder, *names = (word for word in sys.argv[1:] if word != ONE_DEVICE)
    found = {}
    for name in names:
        started = time.monotonic()
        found[name] = JOBS[name](Path(folder) / name)
        print(f"{name} took {time.monotonic() - started:.1f} s", flush=True)
    torch.save(found, Path(folder) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
