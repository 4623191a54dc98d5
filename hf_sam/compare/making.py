# SPDX-License-Identifier: Apache-2.0
"""Runs made side by side, each in a session of its own, and ended cleanly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from .jobs import Job

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "checkpoint-*")
"""What a finished run need not keep."""
PATIENCE = 5.0
"""Seconds that a run has to end before it is killed."""


@dataclass(frozen=True)
class Settings:
    """How runs are made.

    Attributes:
        parallel: how many side by side.
        launch: the words before `-m hf_sam.compare.child`.
        examples: to measure the sharpness on after each evaluation, 0 for none.
        keep_models: whether finished runs keep weights and checkpoints.
    """

    parallel: int = 1
    launch: tuple[str, ...] = (sys.executable,)
    examples: int = 64
    keep_models: bool = False


class Running:
    """A run that was started, in a session of its own.

    Args:
        job: to run; what an earlier try left behind is removed.
        settings: of all runs.
        threads: of the processor, where the user set no OMP_NUM_THREADS.
    """

    def __init__(self, job: Job, settings: Settings, threads: int) -> None:
        self.job = job
        self.since = time.monotonic()
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
        record = ("-m", "hf_sam.compare.child", str(job.folder), str(settings.examples))
        words = [*settings.launch, *record, *job.words]
        with (job.folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.since

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the run and to every process that it started."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


Watch = Callable[[Sequence[Running], Sequence[Running]], None]
"""Called with the runs that go on and those that just ended."""


def end(running: Sequence[Running]) -> None:
    """End runs: ask, wait a little, then kill."""
    for run in running:
        run.signal(signal.SIGTERM)
    latest = time.monotonic() + PATIENCE
    while time.monotonic() < latest and not all(run.ended for run in running):
        time.sleep(0.05)
    for run in running:
        run.signal(signal.SIGKILL)
        run.process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP an interrupt as Ctrl-C is, for the block."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make(jobs: Sequence[Job], settings: Settings, watch: Watch) -> list[Job]:
    """Make the runs that have no result, and return those that failed.

    The first run to end shows whether the script works: if it fails, no other is started.

    Args:
        jobs: in the order to make them.
        settings: how to make them.
        watch: called with the runs that go on and those that just ended, several times a second.
    """
    waiting = [job for job in jobs if not job.finished]
    worked = len(waiting) < len(jobs)
    return pool(lambda: waiting.pop(0) if waiting else None, settings, watch, worked)


def pool(
    take: Callable[[], Job | None], settings: Settings, watch: Watch, worked: bool = False
) -> list[Job]:
    """Make runs as they are handed out, and return those that failed; see `make`.

    Args:
        take: returns the next run, or None while there is none; what then runs may bring others.
        settings: how to make them.
        watch: called with the runs that go on and those that just ended, several times a second.
        worked: whether the script is known to work.
    """
    threads = max((os.cpu_count() or 1) // settings.parallel, 1)
    running: list[Running] = []
    failed: list[Job] = []
    try:
        while True:
            while len(running) < settings.parallel and (worked or not failed):
                job = take()
                if job is None:
                    break
                running.append(Running(job, settings, threads))
            if not running:
                return failed
            ended = [run for run in running if run.ended]
            running = [run for run in running if run not in ended]
            for run in ended:
                worked = worked or run.job.finished
                _tidy(run.job, failed, settings.keep_models)
            watch(running, ended)
            time.sleep(0.1)
    finally:
        end(running)


def _tidy(job: Job, failed: list[Job], keep_models: bool) -> None:
    if not job.finished:
        failed.append(job)
    elif not keep_models:
        for pattern in WEIGHTS:
            for path in (job.folder / "output").rglob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
