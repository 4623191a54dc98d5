# SPDX-License-Identifier: Apache-2.0
"""What is seen while runs are made: how far they are, what ended, and the time left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from .jobs import Job
    from .making import Running


def time_left(
    waiting: Mapping[str, int],
    running: Sequence[tuple[str, float, float]],
    took: Mapping[str, Sequence[float]],
    parallel: int,
) -> float | None:
    """Return the seconds until all runs are made, None while nothing tells.

    A method takes as long as its finished runs did on average; one that has none, as long as its
    running ones will at their pace, or as all others.

    Args:
        waiting: method -> runs that were not started.
        running: method, share of the updates done, and seconds so far of each run that goes on.
        took: method -> seconds of its finished runs.
        parallel: runs side by side.
    """
    known = {method: statistics.fmean(seconds) for method, seconds in took.items() if seconds}
    for method, share, seconds in running:
        if share > 0.05:
            known.setdefault(method, seconds / share)
    if not known:
        return None
    usual = statistics.fmean(known.values())
    left = sum(count * known.get(method, usual) for method, count in waiting.items())
    for method, share, seconds in running:
        whole = seconds / share if share > 0.05 else known.get(method, usual)
        left += max(whole - seconds, 0.0)
    return left / min(parallel, max(sum(waiting.values()) + len(running), 1))


class Display:
    """One display of all runs; on anything but a terminal, a line for each run that ends.

    Args:
        jobs: all runs, the finished ones too.
        parallel: runs side by side.
        console: to write on.
    """

    def __init__(self, jobs: Sequence[Job], parallel: int, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self.console = console
        self.parallel = parallel
        self.waiting = [job for job in jobs if not job.finished]
        self.took: dict[str, list[float]] = {}
        self.total, self.done = len(jobs), len(jobs) - len(self.waiting)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        note = TextColumn("{task.fields[note]}")
        self.bars = Progress(*columns, note, console=console, disable=not console.is_terminal)
        self.all = self.bars.add_task("all runs", total=float(self.total), note="")
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, running: Sequence[Running], ended: Sequence[Running]) -> None:
        """Show the runs that go on, and say which ended."""
        for run in ended:
            self._end(run, running)
        for run in running:
            if run.job in self.waiting:
                self.waiting.remove(run.job)
                self.tasks[run.job.name] = self.bars.add_task(run.job.name, total=1.0, note="")
            self.bars.update(self.tasks[run.job.name], completed=run.job.progress)
        shares = sum(run.job.progress for run in running)
        self.bars.update(self.all, completed=self.done + shares, note=self._left(running))

    def _end(self, run: Running, running: Sequence[Running]) -> None:
        self.done += 1
        if run.job in self.waiting:
            self.waiting.remove(run.job)
        if run.job.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(run.job.name))
        took = timedelta(seconds=round(run.seconds))
        if run.job.finished:
            self.took.setdefault(run.job.row.text, []).append(run.seconds)
            said = f"{run.job.name}: done in {took}"
        else:
            log = run.job.folder / "log.txt"
            said = f"{run.job.name}: failed after {took}: {run.job.last_words}\n  see {log}"
        left = f" ({found})" if (found := self._left(running)) and self.done < self.total else ""
        shown = f"{self.done}/{self.total}  {said}{left}"
        self.console.print(shown, markup=False, highlight=False)

    def _left(self, running: Sequence[Running]) -> str:
        waiting: dict[str, int] = {}
        for job in self.waiting:
            waiting[job.row.text] = waiting.get(job.row.text, 0) + 1
        going = [(run.job.row.text, run.job.progress, run.seconds) for run in running]
        seconds = time_left(waiting, going, self.took, self.parallel)
        return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
