# SPDX-License-Identifier: Apache-2.0
"""From finished runs to what is reported: lines per method, and a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .paired import ENOUGH, Paired, in_words, paired, signed, spread
from .rows import NONE
from .runs import Run, by_setting, choose_metric, less_is_better

POINTS = " points"
CURVES = ("loss", "sam/sharpness", "compare/sharpness")
"""What is kept of a log, beside the compared metric."""


@dataclass(frozen=True)
class Line:
    """One method in one setting.

    Attributes:
        method: with its options.
        seeds: in order.
        scores: of the last model, a seed each.
        seconds: mean seconds per update.
        time: seconds per update relative to `none` with the same seed, the mean; None without it.
            On a CPU they are CPU seconds, where both were taken.
        memory_mb: mean over the seeds of the peak, None where it was not measured.
        memory: peak relative to `none`, None where it is not known.
        difference: to `none`, None for `none` itself and without a seed in common.
        words: what the difference says.
    """

    method: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: float
    time: float | None
    memory_mb: float | None
    memory: float | None
    difference: Paired | None
    words: str

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class Scale:
    """How the compared metric is shown.

    Attributes:
        metric: name in the log.
        less_is_better: whether a low score is good.
        factor: scores are multiplied by it.
        unit: of a difference.
    """

    metric: str
    less_is_better: bool
    factor: float
    unit: str

    @property
    def title(self) -> str:
        """The metric in words."""
        words = self.metric.removeprefix("eval_").replace("_", " ")
        return f"{words} (%)" if self.factor == 100 else words


def scale_of(runs: Sequence[Run], metric: str | None) -> Scale:
    """Return the scale of the metric that the runs are compared by; shares become percent.

    Raises:
        ValueError: the runs do not all have that metric.
    """
    name = choose_metric(runs, metric)
    low = less_is_better(name)
    is_share = not low and all(abs(run.metrics[name]) <= 1 for run in runs)
    return Scale(name, low, 100 if is_share else 1, POINTS if is_share else "")


def lines_of(runs: Sequence[Run], scale: Scale) -> list[Line]:
    """Return a line per method, `none` first and the others as they came."""
    methods = sorted(dict.fromkeys(run.method for run in runs), key=lambda m: m != NONE)
    plain = {run.seed: run for run in runs if run.method == NONE}
    return [
        _line(method, {run.seed: run for run in runs if run.method == method}, plain, scale)
        for method in methods
    ]


def _line(method: str, own: Mapping[int, Run], plain: Mapping[int, Run], scale: Scale) -> Line:
    seeds = tuple(sorted(own))
    both = [seed for seed in seeds if seed in plain]
    time = _mean([_time(own[seed], plain[seed]) for seed in both])
    peaks = {s: run.memory_mb for s, run in own.items() if run.memory_mb}
    before = {s: run.memory_mb for s, run in plain.items() if run.memory_mb}
    difference = None
    if method != NONE:
        difference = paired(_scores(own, scale), _scores(plain, scale), scale.less_is_better)
    return Line(
        method=method,
        seeds=seeds,
        scores=tuple(_scores(own, scale)[seed] for seed in seeds),
        seconds=statistics.fmean(own[seed].seconds_per_update for seed in seeds),
        time=time,
        memory_mb=_mean(list(peaks.values())),
        memory=_mean([peaks[s] / before[s] for s in both if s in peaks and s in before]),
        difference=difference,
        words=_words(method, difference, time, scale),
    )


def _time(own: Run, plain: Run) -> float:
    if own.cpu_seconds_per_update and plain.cpu_seconds_per_update:
        return own.cpu_seconds_per_update / plain.cpu_seconds_per_update
    return own.seconds_per_update / plain.seconds_per_update


def _scores(runs: Mapping[int, Run], scale: Scale) -> dict[int, float]:
    return {seed: scale.factor * run.metrics[scale.metric] for seed, run in runs.items()}


def _words(method: str, difference: Paired | None, time: float | None, scale: Scale) -> str:
    if difference is not None:
        return in_words(difference, time, scale.unit)
    return "what the others are compared with" if method == NONE else f"no {NONE} with its seeds"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def verdict(lines: Sequence[Line], unit: str = "") -> str:
    """Return one sentence: which method is better or worse than `none` beyond noise, or neither."""
    compared = [line for line in lines if line.difference is not None]
    if not compared:
        return f"Nothing is compared: no method has a seed in common with {NONE}."
    judged = [line for line in compared if _count(line) >= ENOUGH]
    if not judged:
        most = max(map(_count, compared))
        seeds = "One seed is" if most == 1 else f"{most} seeds are"
        return f"{seeds} too few to tell a difference from noise; run at least {ENOUGH}, better 5."
    sure = sorted((line for line in judged if _is_sure(line)), key=_gain, reverse=True)
    winners = [line for line in sure if _gain(line) > 0]
    losers = [line for line in sure if _gain(line) < 0]
    few = [line.method for line in compared if line not in judged]
    return _sentence(winners, losers, few, judged, unit)


def _sentence(
    winners: Sequence[Line],
    losers: Sequence[Line],
    few: Sequence[str],
    judged: Sequence[Line],
    unit: str,
) -> str:
    if winners:
        found = f"{winners[0].method} beats {NONE}: {winners[0].words}"
        if winners[1:]:
            found += f"; so do {', '.join(line.method for line in winners[1:])}"
    else:
        counts = sorted({_count(line) for line in judged})
        seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        found = f"No method is better than {NONE} beyond noise in {seeds} seeds"
    if losers:
        found += f"; worse beyond noise: {', '.join(_loss(line, unit) for line in losers)}"
    if few:
        found += f"; too few seeds to tell: {', '.join(few)}"
    return f"{found}."


def _loss(line: Line, unit: str) -> str:
    assert line.difference is not None
    return f"{line.method} ({signed(line.difference.mean, unit)}{unit})"


def _count(line: Line) -> int:
    return len(line.difference.values) if line.difference is not None else 0


def _gain(line: Line) -> float:
    return line.difference.gain(line.difference.mean) if line.difference is not None else 0.0


def _is_sure(line: Line) -> bool:
    return line.difference is not None and line.difference.beyond_noise


def front(lines: Sequence[Line], less_is_better: bool = False) -> list[Line]:
    """Return the lines that no other beats in score and in time, the fastest first."""
    sign = -1 if less_is_better else 1
    relative = all(line.time is not None for line in lines)
    found: list[Line] = []

    def order(line: Line) -> tuple[float, float]:
        return (line.time or 0.0) if relative else line.seconds, -sign * line.mean

    for line in sorted(lines, key=order):
        if not found or sign * line.mean > sign * found[-1].mean:
            found.append(line)
    return found


def summarise(
    runs: Sequence[Run],
    command: str,
    metric: str | None = None,
    missing: Sequence[str] = (),
    note: str = "",
) -> dict[str, Any]:
    """Return everything that is reported, as JSON holds it.

    Args:
        runs: finished ones, at least one.
        command: that made this report.
        metric: to compare by; default: the one that the task is known by.
        missing: runs that were planned and are not finished.
        note: a sentence to show above the results.

    Raises:
        ValueError: the runs do not all have that metric.
    """
    scale = scale_of(runs, metric)
    settings: list[dict[str, Any]] = []
    grouped = by_setting(runs)
    first_name, first = next(iter(grouped.items()))
    for name, group in grouped.items():
        lines = lines_of(group, scale)
        settings.append({
            "name": name,
            "verdict": verdict(lines, scale.unit),
            "baseline": "" if group is first else baseline(group, first, first_name, scale),
            "lines": [_as_json(line) for line in lines],
            "front": [line.method for line in front(lines, scale.less_is_better)],
            "runs": [_run(run, scale) for run in group],
        })
    return {
        "command": command,
        "note": note,
        **asdict(scale),
        "title": scale.title,
        "settings": settings,
        "missing": list(missing),
        "versions": _all("versions", runs),
        "hardware": _all("hardware", runs),
    }


def baseline(runs: Sequence[Run], first: Sequence[Run], name: str, scale: Scale) -> str:
    """Return in words what a setting does to `none` itself, against the first setting."""
    own, plain = (
        _scores({run.seed: run for run in group if run.method == NONE}, scale)
        for group in (runs, first)
    )
    found = paired(own, plain, scale.less_is_better)
    if found is None:
        return ""
    return f"{NONE} here against {NONE} with {name}: {in_words(found, None, scale.unit)}."


def _as_json(line: Line) -> dict[str, Any]:
    found = asdict(line) | {"mean": line.mean, "deviation": spread(line.scores)}
    if line.difference is not None:
        own = line.difference
        found["difference"] |= {
            "mean": own.mean,
            "deviation": own.deviation,
            "better": own.better,
            "worse": own.worse,
        }
    return found


def _run(run: Run, scale: Scale) -> dict[str, Any]:
    names = (*CURVES, scale.metric)
    return {
        "method": run.method,
        "seed": run.seed,
        "metrics": run.metrics,
        "updates": run.updates,
        "seconds_per_update": run.seconds_per_update,
        "memory_mb": run.memory_mb,
        "command": run.command,
        "curves": {
            name: [[e["epoch"], e[name]] for e in run.log if name in e and "epoch" in e]
            for name in names
        },
    }


def _all(name: str, runs: Sequence[Run]) -> dict[str, str]:
    """Return key -> value, or all values where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in getattr(run, name).items():
            found.setdefault(key, {})[str(value)] = None
    return {key: " and ".join(values) for key, values in found.items()}
