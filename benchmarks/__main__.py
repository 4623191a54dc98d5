# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what every method costs on this machine, next to hand-written loops and peers.

Measures the cells of `benchmarks/cells.py` that have no result in `--output_dir` yet, so that an
interrupted run goes on where it was, and writes their tables beside them.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the Hub

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import cells, machine, pages

OUTPUT = Path("outputs/bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, write the page, and return the number of cells that failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=OUTPUT, help="folder of the results")
    parser.add_argument("--only", nargs="+", default=[], help="cells whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="name the cells; measure nothing")
    settings = parser.parse_args(argv)
    wanted = [
        c for c in cells.plan() if not settings.only or any(o in c.name for o in settings.only)
    ]
    if not wanted:
        raise ValueError(f"--only {' '.join(settings.only)}: no cell's name holds it; see --list")
    if settings.list:
        for cell in wanted:
            done = cells.path_of(cell, settings.output_dir).is_file()
            print(f"{'done' if done else '    '} {cell.name}")
        return 0
    transformers.utils.logging.set_verbosity_error()
    failed = _measure(wanted, settings.output_dir)
    page = write(settings.output_dir)
    print(f"Tables: {page}")
    return len(failed)


def _measure(wanted: Sequence[cells.Cell], folder: Path) -> list[str]:
    """Measure the cells that have no result; return the names of those that failed."""
    failed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(wanted))
        for cell in wanted:
            path = cells.path_of(cell, folder)

            def say(text: str, name: str = cell.name) -> None:
                progress.update(task, description=f"{name}: {text}")

            if not path.is_file():
                say("preparing")
                try:
                    if cell.processes > 1:
                        cells.launch(cell, folder)
                    else:
                        machine.write(path, cells.measure(cell, say))
                    progress.console.print(f"{cell.name}: done")
                except Exception as error:  # the others are measured all the same
                    failed.append(cell.name)
                    progress.console.print(f"{cell.name}: failed: {error}", markup=False)
                gc.collect()
            progress.advance(task)
    return failed


def write(folder: Path) -> Path:
    """Write the page of the cells in a folder into it; return the page."""
    found = {path.stem: machine.read(path) for path in sorted(folder.glob("*.json"))}
    page = folder / "README.md"
    body = "\n".join(pages.sections(found))
    page.write_text(f"# Benchmarks of this machine\n\n{body}", encoding="utf-8")
    return page


if __name__ == "__main__":
    sys.exit(main())
