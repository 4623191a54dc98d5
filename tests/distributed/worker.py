# SPDX-License-Identifier: Apache-2.0
"""One process of several: runs the named jobs and writes what they found to `FOLDER/rankN.pt`.

With `--fork PORT` it becomes two processes after its imports, which are most of a short job's time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ONE_DEVICE = "--one-device"
if ONE_DEVICE in sys.argv:  # accelerate takes the device of this number
    os.environ["LOCAL_RANK"] = "0"

import torch  # noqa: E402
from torch.multiprocessing import start_processes  # noqa: E402

from tests.distributed import change_jobs, fsdp_jobs, jobs, traffic_jobs, zero_jobs  # noqa: E402

JOBS = jobs.JOBS | fsdp_jobs.JOBS | fsdp_jobs.GPU_JOBS | fsdp_jobs.FOUR
JOBS |= zero_jobs.JOBS | zero_jobs.ZERO3 | traffic_jobs.JOBS | change_jobs.JOBS


def main() -> None:
    """Run `worker.py FOLDER JOB... [--one-device] [--fork PORT]`."""
    torch.set_num_threads(1)
    folder, *names = (word for word in sys.argv[1:] if word != ONE_DEVICE)
    if "--fork" in names:
        *names, _, port = names
        start_processes(forked, (port, folder, names), nprocs=2, start_method="fork")
    else:
        work(folder, names)


def forked(rank: int, port: str, folder: str, names: list[str]) -> None:
    """Be one of two ranks, as torchrun would have it."""
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    there |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ.update(there | {name: "2" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")})
    work(folder, names)


def work(folder: str, names: list[str]) -> None:
    """Run jobs, and write what they found."""
    found = {}
    for name in names:
        started = time.monotonic()
        found[name] = JOBS[name](Path(folder) / name)
        print(f"{name} took {time.monotonic() - started:.1f} s", flush=True)
    torch.save(found, Path(folder) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
