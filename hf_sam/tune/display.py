# SPDX-License-Identifier: Apache-2.0
"""What is seen of a search: how much of the budget is used, what runs, and what ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from ..compare.paired import signed
from .search import RUNS, Search

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from ..compare.making import Running


class Display:
    """One display of a search; on anything but a terminal, a line for each run that ends.

    Args:
        search: what is shown.
        console: to write on.
    """

    def __init__(self, search: Search, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._search, self._console = search, console
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._all = self.bars.add_task("budget", total=search.budget.amount)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, running: Sequence[Running], ended: Sequence[Running]) -> None:
        """Show the runs that go on, and say which ended."""
        for run in ended:
            if run.job.name in self._tasks:
                self.bars.remove_task(self._tasks.pop(run.job.name))
            self._console.print(self._said(run), markup=False, highlight=False)
        for run in running:
            if run.job.name not in self._tasks:
                self._tasks[run.job.name] = self.bars.add_task(run.job.name, total=1.0)
            self.bars.update(self._tasks[run.job.name], completed=run.job.progress)
        self.bars.update(self._all, completed=self._search.spent)

    def _said(self, run: Running) -> str:
        job, took = run.job, timedelta(seconds=round(run.seconds))
        budget = self._search.budget
        used = (
            f"{self._search.runs}/{budget.amount:g} runs"
            if budget.unit == RUNS
            else f"{timedelta(seconds=round(self._search.seconds))} of "
            f"{timedelta(seconds=round(budget.amount))}"
        )
        if not job.finished:
            return f"{used}  {job.name}: failed after {took}: {job.last_words}"
        return f"{used}  {job.name}: done in {took}{self._gain(run)}"

    def _gain(self, run: Running) -> str:
        """Return the candidate's gain so far, if the plain Trainer has run with its seeds."""
        row, plain = run.job.row, self._search.rows[0]
        both = min(len(self._search.results(r)) for r in (row, plain))
        if row is plain or not both:
            return ""
        seeds = "1 seed" if both == 1 else f"{both} seeds"
        return f", {signed(self._search.gain(row, both))} over none in {seeds}"
