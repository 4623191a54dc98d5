# SPDX-License-Identifier: Apache-2.0
"""Starts processes on this machine that run jobs of `jobs.py`, and collects what they found."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TORCHRUN = ("torch.distributed.run", "--master_addr", "127.0.0.1")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run(module: list[str], timeout: float) -> str:
    """Run `python -m module...` from the repository's root; return its output, or fail with it."""
    alone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        k: v for k, v in os.environ.items() if k not in alone and not k.startswith("ACCELERATE_")
    }
    environment = kept | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    said = done.stdout + done.stderr
    if done.returncode:
        first = [line for line in said.splitlines() if line.startswith("[rank0]")]
        raise AssertionError(
            f"{module} ended with {done.returncode}\n" + ("\n".join(first) or said)
        )
    return said


def accelerate_launch(config: str, jobs: list[str], folder: Path, timeout: float = 300.0) -> Any:
    """Run jobs in the processes of a file in `accelerate_configs/`; return as `torchrun` does."""
    chosen = ["--config_file", str(ROOT / "accelerate_configs" / config)]
    chosen += ["--main_process_port", str(free_port())]
    worker = ["-m", "tests.distributed.worker", str(folder), *jobs]
    run(["accelerate.commands.launch", *chosen, *worker], timeout)
    return collect(folder)


def collect(folder: Path, processes: int = 2) -> list[dict[str, Any]]:
    """Return one dict, job -> found, per rank."""
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(processes)]


def fork(jobs: list[str], folder: Path, timeout: float = 300.0) -> list[dict[str, Any]]:
    """Run jobs in two processes that load the libraries once; return as `torchrun` does."""
    port = ["--fork", str(free_port())]
    run(["tests.distributed.worker", str(folder), *jobs, *port], timeout)
    return collect(folder)


def torchrun(
    jobs: list[str],
    folder: Path,
    timeout: float = 300.0,
    one_device: bool = False,
    processes: int = 2,
) -> list[dict[str, Any]]:
    """Run jobs by name in several processes under torchrun; return as `collect` does.

    Args:
        jobs: keys of `JOBS`.
        folder: for all that is written.
        timeout: seconds.
        one_device: the processes share the first device instead of taking one each.
        processes: how many.
    """
    worker = ["-m", "tests.distributed.worker", str(folder), *jobs]
    worker += ["--one-device"] if one_device else []
    given = ["--nproc_per_node", str(processes), "--master_port", str(free_port())]
    run([*TORCHRUN, *given, *worker], timeout)
    return collect(folder, processes)
