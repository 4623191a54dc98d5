# SPDX-License-Identifier: Apache-2.0
"""Successive halving over seeds: only the better half of the candidates gets twice as many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compare.jobs import Job, plan, remember
from ..compare.making import Running
from ..compare.rows import NONE, Row
from ..compare.runs import Run, choose_metric, less_is_better, recorded
from .space import Space

if TYPE_CHECKING:
    import optuna

RUNS, SECONDS = "runs", "seconds"


@dataclass(frozen=True)
class Budget:
    """What a search may cost, all calls with its folder together.

    Attributes:
        amount: how much.
        unit: `RUNS` or `SECONDS`.
    """

    amount: float
    unit: str


class Broken(ValueError):
    """The script fails without any method, so that there is nothing to compare with."""


@dataclass
class Active:
    """A candidate that is being tried.

    Attributes:
        row: the candidate.
        trial: the study's record of it.
        done: seeds whose result the study knows.
    """

    row: Row
    trial: optuna.Trial
    done: int = 0


class Search:
    """A search that hands out one run after the other and takes in their results.

    Every run is a whole training, as SAM shows late in one what it is worth. A candidate's value is
    its mean gain over `none` with the same seeds.

    Args:
        space: the candidates, and in which order they are tried.
        seeds: for each of them, at most.
        script: the script and its arguments, which make it evaluate on a part of its training set.
        folder: of the search; what an earlier call began there goes on.
        budget: what it may cost.
        metric: the score that decides, None for the one that the task is known by.

    Raises:
        ValueError: the folder holds another search.
    """

    def __init__(
        self,
        space: Space,
        seeds: int,
        script: Sequence[str],
        folder: Path,
        budget: Budget,
        metric: str | None = None,
    ) -> None:
        self.space, self.rows = space, space.rows
        self.seeds, self.script = seeds, script
        self.folder, self.budget, self._wanted_metric = folder, budget, metric
        self.study = open_study(folder, [row.text for row in space.rows], seeds)
        self._active = [self._take_up(old) for old in _begun(self.study)]
        self._handed: set[Path] = set()
        self._took: list[float] = []
        self._before = float(self.study.user_attrs["seconds"])
        self._since = time.monotonic()
        self.runs = sum(1 for _ in folder.glob("runs/*/run.json"))

    @property
    def spent(self) -> float:
        """How much of the budget is used."""
        return self.runs if self.budget.unit == RUNS else self.seconds

    @property
    def seconds(self) -> float:
        """Seconds that all calls have taken so far."""
        return self._before + time.monotonic() - self._since

    # -- runs -----------------------------------------------------------------------------------

    def take(self) -> Job | None:
        """Return the next run to make, or None if there is none now."""
        self._settle()
        while self._affordable():
            for job in self._next():
                if not job.finished and job.folder not in self._handed:
                    self._handed.add(job.folder)
                    self.runs += 1
                    remember(self.folder, [job], self.script)
                    return job
            if not self._begin():
                return None
        return None

    def watch(self, running: Sequence[Running], ended: Sequence[Running]) -> None:
        """Take in the results of the runs that just ended.

        Raises:
            Broken: the plain Trainer failed.
        """
        for run in ended:
            self._took.append(run.seconds)
            if not run.job.finished:
                self._give_up(run.job)
        if ended:
            self.study.set_user_attr("seconds", self.seconds)
            self._settle()

    def _affordable(self) -> bool:
        if self.budget.unit == RUNS:
            return self.runs < self.budget.amount
        # The last run should end in time, too.
        return self.seconds + statistics.fmean(self._took or [0.0]) <= self.budget.amount

    def _next(self) -> Iterator[Job]:
        """Yield the runs that come next, begun or not; the plain Trainer's before all others.

        Then come the candidates with the fewest seeds, so that all radii have run once before any
        runs again.
        """
        for seed in range(1, self.seeds + 1):
            yield self.job(self.rows[0], seed)
        while len(self.study.get_trials(deepcopy=False)) <= self.space.first:
            self._begin()
        for active in sorted(self._active, key=lambda active: active.done):
            if active.done and active.trial.should_prune():
                self.study.tell(active.trial, self.gain(active.row, active.done))
                self._active.remove(active)
            else:
                yield self.job(active.row, active.done + 1)

    def job(self, row: Row, seed: int) -> Job:
        """Return the run of a candidate with a seed."""
        return plan([row], [seed], self.script, self.folder)[0]

    # -- trials ---------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Begin with another candidate, if there is one."""
        from optuna.trial import TrialState

        # A call that was killed may have left one waiting.
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            begun = {t.params["candidate"] for t in self.study.get_trials(deepcopy=False)}
            if len(begun) == len(self.rows):
                return False
            row = self.space.after(begun, self._best_so_far())
            self.study.enqueue_trial({"candidate": row.text})
        self._active.append(self._take_up(self.study.ask()))
        return True

    def _take_up(self, trial: optuna.Trial) -> Active:
        texts = [row.text for row in self.rows]
        text = trial.suggest_categorical("candidate", texts)
        reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        return Active(self.rows[texts.index(text)], trial, len(reported))

    def _settle(self) -> None:
        """Tell the study every result that is there, and which candidates have all their seeds."""
        for active in list(self._active):
            while active in self._active and self._report(active):
                pass

    def _report(self, active: Active) -> bool:
        """Report a candidate's result with its next seed, if that and the plain one are there."""
        seed = active.done + 1
        if not all(self.job(row, seed).finished for row in (active.row, self.rows[0])):
            return False
        active.done = seed
        value = self.gain(active.row, seed)
        active.trial.report(value, seed)
        if seed == self.seeds:
            self.study.tell(active.trial, value)
            self._active.remove(active)
        return True

    def _give_up(self, job: Job) -> None:
        from optuna.trial import TrialState

        if job.row.text == NONE:
            raise Broken(f"{job.name} failed: {job.last_words} (see {job.folder / 'log.txt'})")
        for active in [a for a in self._active if a.row.text == job.row.text]:
            self.study.tell(active.trial, state=TrialState.FAIL)
            self._active.remove(active)

    # -- results --------------------------------------------------------------------------------

    def results(self, row: Row) -> list[Run]:
        """Return the finished runs of a candidate, by seed."""
        jobs = [self.job(row, seed) for seed in range(1, self.seeds + 1)]
        return [recorded(j.folder, row.name, row.setting) for j in jobs if j.finished]

    def gain(self, row: Row, seeds: int) -> float:
        """Return the mean gain over the plain Trainer in the first so many seeds."""
        own, plain = (self.results(r)[:seeds] for r in (row, self.rows[0]))
        metric = choose_metric([*own, *plain], self._wanted_metric)
        sign = -1 if less_is_better(metric) else 1
        both = zip(own, plain, strict=True)
        return statistics.fmean(sign * (a.metrics[metric] - b.metrics[metric]) for a, b in both)

    def best(self) -> Row:
        """Return the candidate with the largest gain among those that were tried the longest.

        Raises:
            ValueError: no candidate was tried.
        """
        found = self._best_so_far()
        if found is None:
            raise ValueError(
                f"the budget ended before a candidate was tried ({self.runs} runs, "
                f"{self.seconds:.0f} seconds): the same command with a larger --budget goes on"
            )
        return found

    def _best_so_far(self) -> Row | None:
        counts = {row.text: len(self.results(row)) for row in self.rows}
        most = max(counts[row.text] for row in self.rows[1:])
        most = min(most, counts[NONE])
        tried = [row for row in self.rows[1:] if counts[row.text] >= most > 0]
        return max(tried, key=lambda row: self.gain(row, most), default=None)


def open_study(folder: Path, texts: Sequence[str], seeds: int) -> optuna.Study:
    """Return the study in a folder: the one that is there, or a new one with these candidates.

    Raises:
        ValueError: the study there is of other candidates or seeds.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="tune",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        direction="maximize",
        load_if_exists=True,
        # A rung is a number of seeds: 1, 2, 4 and so on.
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    what = {"candidates": list(texts), "seeds": seeds}
    if "seconds" not in study.user_attrs:
        _fill(study, texts, seeds)
        for name, value in {**what, "seconds": 0.0}.items():
            study.set_user_attr(name, value)
    known = {name: study.user_attrs[name] for name in what}
    if known != what:
        raise ValueError(
            f"--output_dir {folder} holds a search with {known['seeds']} seeds among "
            f"{len(known['candidates'])} candidates such as {known['candidates'][-1]}: give the "
            "same --methods and --seeds again, or another --output_dir"
        )
    return study


def _fill(study: optuna.Study, texts: Sequence[str], seeds: int) -> None:
    """Tell the study of the plain Trainer, the first candidate, which gains nothing at any rung."""
    study.enqueue_trial({"candidate": texts[0]}, skip_if_exists=True)
    plain = study.ask()
    plain.suggest_categorical("candidate", list(texts))
    for seed in range(1, seeds + 1):
        plain.report(0.0, seed)
        plain.should_prune()  # which notes the rung
    study.tell(plain, 0.0)


def _begun(study: optuna.Study) -> list[Any]:
    """Return the trials that an earlier call has left unfinished."""
    import optuna

    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return [optuna.trial.Trial(study, trial._trial_id) for trial in running]
