# SPDX-License-Identifier: Apache-2.0
"""The runs of a comparison: which there are, which are finished, and what they are started with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import OURS, Row

AVERAGE = "--compare_ema"
"""Not the script's: the process of a run takes it, and averages the weights."""


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
