# SPDX-License-Identifier: Apache-2.0
"""What the samples of a measurement say: ratios to the plain Trainer, passes and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a row's measurement says.

    Attributes:
        ratio: seconds per update relative to `none`: the median over updates of the ratio to the
            same update of `none`. Where a schedule makes one-pass and two-pass updates, the mean of
            the medians of both kinds, weighted as the schedule has them on average.
        low: the same of the first quartiles.
        high: of the third quartiles.
        of_medians: ratio of the median seconds instead.
        cpu: as `ratio`, of the process's CPU seconds; None on a GPU.
        cpu_low: the same of the first quartiles.
        cpu_high: of the third quartiles.
        forwards: per update in whole batches, the renewal of masks left out.
        backwards: per update in whole batches, the renewal of masks left out.
        extra: peak memory beyond that of `none` in bytes, the renewal of masks left out; None if
            not measured.
        extra_renewal: the same in an update that renews a mask.
        seconds: median of the updates that count.
        own: share of an update's time that a trainer spends in `training_step` beside the passes:
            norms, perturbing, restoring, readings. None if not measured.
    """

    ratio: float
    low: float
    high: float
    of_medians: float
    cpu: float | None
    cpu_low: float | None
    cpu_high: float | None
    forwards: float
    backwards: float
    extra: int | None
    extra_renewal: int | None
    seconds: float
    own: float | None


Measured = Mapping[str, Any]


def costs(result: Measured) -> dict[str, Cost]:
    """Return the cost of every row of a result of `benchmarks.methods`."""
    plain = next(row for row in result["rows"] if row["text"] == "none")
    return {row["text"]: _cost(row, plain, result["settings"]) for row in result["rows"]}


def _cost(row: Measured, plain: Measured, settings: Mapping[str, Any]) -> Cost:
    drop, batch = settings["drop"], settings["batch_size"]
    counted = [i for i in range(settings["updates"]) if i not in row["mask_updates"]]
    kinds: dict[int, list[int]] = {}
    for i in counted:
        kinds.setdefault(row["forwards"][i], []).append(i)
    work = {
        kind: statistics.fmean(row["forward_examples"][i] for i in members) / batch
        for kind, members in kinds.items()
    }
    shares = _shares(kinds, work, row["predicted"]["forwards"])

    def ratio(unit: str, quartile: int) -> float:
        """Return the weighted mean over kinds of update of a quartile of the paired ratios."""
        return sum(
            shares[kind]
            * _quartiles([row[unit][i] / plain[unit][i] for i in _kept(members, drop)])[quartile]
            for kind, members in kinds.items()
        )

    medians = {
        kind: statistics.median(row["seconds"][i] for i in _kept(members, drop))
        for kind, members in kinds.items()
    }
    usual = statistics.median(plain["seconds"][drop:])
    peaks = _extra(row, plain)
    cpu = [ratio("cpu_seconds", q) if row["cpu_seconds"] else None for q in range(3)]
    return Cost(
        ratio=ratio("seconds", 1),
        low=ratio("seconds", 0),
        high=ratio("seconds", 2),
        of_medians=sum(shares[kind] * medians[kind] for kind in kinds) / usual,
        cpu=cpu[1],
        cpu_low=cpu[0],
        cpu_high=cpu[2],
        forwards=statistics.fmean(row["forward_examples"][i] for i in counted) / batch,
        backwards=statistics.fmean(row["backward_examples"][i] for i in counted) / batch,
        extra=peaks[0],
        extra_renewal=peaks[1],
        seconds=statistics.median(row["seconds"][i] for i in _kept(counted, drop)),
        own=_own(row, _kept(counted, drop)),
    )


def _own(row: Measured, kept: Sequence[int]) -> float | None:
    """Return the median share of the time in `training_step` beside the passes."""
    if not row.get("step_seconds"):
        return None
    steps, passes = row["step_seconds"], row["pass_seconds"]
    return statistics.median((steps[i] - passes[i]) / row["seconds"][i] for i in kept)


def _kept(members: Sequence[int], drop: int) -> list[int]:
    """Return the updates after the first ones; of a kind that has no others, all."""
    return [i for i in members if i >= drop] or list(members)


def _shares(
    kinds: Mapping[int, Sequence[int]], work: Mapping[int, float], passes: float
) -> dict[int, float]:
    """Return how much each kind of update counts: the mix of one and two passes that is predicted.

    Of other kinds, how many there were.

    Args:
        kinds: the updates by their number of passes.
        work: the examples forwarded in a mean update of each kind, in whole batches.
        passes: the predicted mean of that work over all updates.
    """
    if set(kinds) == {1, 2}:
        second = (passes - work[1]) / (work[2] - work[1])
        return {1: 1 - second, 2: second}
    total = sum(len(members) for members in kinds.values())
    return {kind: len(members) / total for kind, members in kinds.items()}


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def _extra(row: Measured, plain: Measured) -> tuple[int | None, int | None]:
    """Return the extra peak memory outside and inside the renewal of masks."""
    if not row.get("memory") or not plain.get("memory"):
        return None, None
    base = max(plain["memory"]["peaks"][2:])
    renewals = set(row["memory"]["mask_updates"])
    later = list(enumerate(row["memory"]["peaks"]))[2:]
    usual = [peak for i, peak in later if i not in renewals]
    renewal = [peak for i, peak in later if i in renewals]
    return max(usual) - base, max(renewal) - base if renewal else None
