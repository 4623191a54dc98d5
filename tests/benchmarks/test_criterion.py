# SPDX-License-Identifier: Apache-2.0
"""What can be recommended: every way to fail is said, and only what fails at nothing passes."""

from __future__ import annotations

from typing import Any

from benchmarks import criterion


def a_result(deviation: float, schedule: str = "", **means: float) -> dict[str, Any]:
    lines: list[dict[str, Any]] = [
        {"method": "none", "deviation": deviation, "difference": None},
        *(
            {"method": m, "difference": {"mean": mean, "values": [mean] * 3}}
            for m, mean in means.items()
        ),
    ]
    name = f"lr_scheduler_type={schedule}, x=1" if schedule else "default lr_scheduler_type, x=1"
    return {"settings": [{"name": name, "lines": lines}], "less_is_better": False}


def test_who_passes() -> None:
    """Two tasks, deviations 2 and 4: a mean difference of -1 and -2 is just allowed."""
    results = {
        "one": a_result(2.0, good=-1.0, loses=-1.1, idle=0.5, dear=1.0, half=1.0),
        "two": a_result(4.0, good=2.0, loses=5.0, idle=-0.5, dear=1.0),
    }
    prices = {"good": 1.1, "loses": 1.0, "idle": 1.0, "dear": 1.11}
    table = criterion._table(results, ("one", "two"), prices)
    verdicts = {row.split(" | ")[0][2:]: row.split(" | ")[-1][:-2] for row in table.split("\n")[2:]}
    assert verdicts == {
        "`good`": "**yes**",
        "`loses`": "loses",
        "`idle`": "no gain",
        "`dear`": "price",
        "`half`": "tasks missing, price",
    }
    assert "| `good` | linear | −1.00 (1.00) | +2.00 (2.00) | +0.50 | 1.10 |" in table


def test_schedules_are_apart_and_few_seeds_say_nothing() -> None:
    result = a_result(2.0, schedule="warmup_stable_decay", sam=1.0, asam=2.0)
    result["settings"][0]["lines"][-1]["difference"]["values"].pop()
    assert criterion.judged(result) == {("warmup_stable_decay", "sam"): (1.0, 1.0)}


def test_less_may_be_better() -> None:
    result = a_result(2.0, sam=-1.0) | {"less_is_better": True}
    assert criterion.judged(result) == {("linear", "sam"): (1.0, 1.0)}
