# SPDX-License-Identifier: Apache-2.0
"""The runs of a comparison: planned, made side by side, resumed, and ended cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .rows import OURS, Row

AVERAGE = "--compare_ema"
"""Not the script's: the process of a run takes it, and averages the weights."""

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "checkpoint-*")
"""What a finished run need not keep."""
PATIENCE = 5.0
"""Seconds that a run has to end before it is killed."""


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        row: the method.
        seed: of the run.
        folder: gets `log.txt`, `run.json` and the script's `output`.
        words: the script and its arguments.
    """

    row: Row
    seed: int
    folder: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The method and the seed."""
        return f"{self.row.text}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "run.json").is_file()

    @property
    def progress(self) -> float:
        """Share of the updates that are done, as far as is known."""
        try:
            done, all_of_them = (self.folder / "progress").read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return 0.0
        return int(done) / max(int(all_of_them), 1)

    @property
    def last_words(self) -> str:
        """The last line that the run said."""
        try:
            text = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it said nothing"
        said = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        return said[-1].strip() if said else "it said nothing"


def plan(
    rows: Sequence[Row], seeds: Sequence[int], script: Sequence[str], folder: Path
) -> list[Job]:
    """Return the runs, all methods of a seed before the next seed.

    Args:
        rows: the methods.
        seeds: of the runs.
        script: the script and its arguments, which must not name what the comparison sets.
        folder: of the comparison.

    Raises:
        ValueError: no script, or an argument that the comparison sets itself.
    """
    check_script(script)
    return [_job(row, seed, script, folder) for seed in seeds for row in rows]


def _job(row: Row, seed: int, script: Sequence[str], folder: Path) -> Job:
    place = folder / "runs" / f"{slug(row.text)}-seed{seed}"
    own = {"sam_track_memory": "true"} | row.arguments
    own |= {"seed": str(seed), "output_dir": str(place / "output")}
    flags = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    averaged = () if row.ema is None else (AVERAGE, row.ema)
    return Job(row, seed, place, (*script, *flags, *averaged))


def slug(text: str) -> str:
    """Return a text as a part of a file's name; different texts stay different."""
    return re.sub(r"[^\w.-]", lambda found: {":": "-", ",": "-", "=": ""}.get(found[0], "_"), text)


def check_script(script: Sequence[str]) -> None:
    """Refuse what cannot be run, or what would take the comparison's place.

    Raises:
        ValueError: see there.
    """
    if not script or (script[0] == "-m" and len(script) == 1):
        raise ValueError(
            "no script to run: give it and its arguments after --, as in -- SCRIPT ..."
        )
    if script[0] != "-m" and not Path(script[0]).is_file():
        raise ValueError(f"{script[0]}: there is no such script")
    for word in script[1:]:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and (name in OURS or name.startswith("sam_")):
            raise ValueError(
                f"{word.partition('=')[0]} is set by the comparison: leave it out (methods and "
                "their options go into --methods, seeds into --seeds)"
            )


def remember(folder: Path, jobs: Sequence[Job], script: Sequence[str]) -> None:
    """Write `plan.json`; refuse a folder that holds the runs of another command.

    Raises:
        ValueError: the runs there are of a script with other arguments.
    """
    path = folder / "plan.json"
    before: dict[str, Any] = {"jobs": []}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["script"] != list(script):
            raise ValueError(
                f"--output_dir {folder} holds the runs of other arguments, "
                f"{' '.join(before['script'])!r}: give them again, or another --output_dir"
            )
    mine = [
        {
            "folder": str(job.folder.relative_to(folder)),
            "name": job.name,
            "method": job.row.name,
            "setting": job.row.setting,
            "seed": job.seed,
        }
        for job in jobs
    ]
    kept = [job for job in before["jobs"] if job not in mine]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"script": list(script), "jobs": kept + mine}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


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
