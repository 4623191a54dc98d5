# SPDX-License-Identifier: Apache-2.0
"""The page of the evidence: paired within a schedule, the schedule's part apart, gaps said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence, machine

METHODS = (("linear", "none"), ("linear", "sam"), ("wsd", "none"), ("wsd", "sam"))


def a_run(schedule: str, method: str, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "setting": "noise40",
        "schedule": schedule,
        "method": method,
        "seed": seed,
        "options": method,
        "scores": {"eval_accuracy": accuracy},
        "evaluations": [[5.0, 0.5], [10.0, accuracy]],
        "passes": 1.0 if method == "none" else 2.0,
    }


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    names = [f"noise40-{s}-{m}-seed{seed}" for seed in (1, 2, 3) for s, m in METHODS]
    path = tmp_path / "plan.json"
    names += ["noise0-linear-none-seed1", "noise40-linear-asam-b-seed1"]
    path.write_text(json.dumps({"common": {}, "runs": {name: {} for name in names}}))
    return path


def test_the_page(plan: Path) -> None:
    """wsd alone brings 4 points; sam brings 1 more under wsd, and loses 2 under linear."""
    runs = []
    for seed, noise in ((1, 0.0), (2, 0.001), (3, -0.001)):
        base = 0.6 + seed / 100
        runs += [
            a_run("linear", "none", seed, base),
            a_run("linear", "sam", seed, base - 0.02 + noise),
            a_run("wsd", "none", seed, base + 0.04),
            a_run("wsd", "sam", seed, base + 0.05 + noise),
        ]
    result = {"runs": runs, "versions": {"torch": "2"}, "hardware": {"cpu": "C", "cores": 2}}
    text = evidence.page(plan, result)
    assert (
        "| `sam` | linear | 3 | 50.0 | 60.0 ± 1.0 | −2.00 ± 0.10 | −2.10 to −1.90 | 0 of 3 | 2.00 |"
        in text
    )
    assert "worse in 3 of 3 seeds, −2.00 ± 0.10 points" in text
    assert "| `sam` | wsd | 3 | 50.0 | 67.0 ± 1.0 | +1.00 ± 0.10 |" in text
    assert (
        "`none` with `wsd` against `none` with `linear`: better in 3 of 3 seeds, +4.00 ± 0.00"
        in text
    )
    assert (
        "`sam` with `wsd` against `none` with `linear`: +5.00 ± 0.10 points over 3 seeds, of which "
        "the method's own part is +1.00 ± 0.10."
    ) in text
    assert "| `asam-b` | linear | 0 |  | not measured |" in text
    assert "12 of 13 planned runs are finished." in text
    assert "0 of 1 planned runs are finished." in text
    assert "C, 2 cores; torch 2." in text


def test_the_names_of_runs() -> None:
    found = evidence.named("noise40-wsd-sam-0.05-quarter-seed12")
    assert found == {
        "setting": "noise40",
        "schedule": "wsd",
        "method": "sam-0.05-quarter",
        "seed": 12,
    }
    with pytest.raises(ValueError, match="is not named SETTING-SCHEDULE-METHOD-seedN"):
        evidence.named("none")


def test_collect(plan: Path, tmp_path: Path) -> None:
    """Only finished runs; the passes are counted from what the log says."""
    from tests.compare.test_report import finished

    sam = {"sam": "sam", "sam_when": "after:0.5", "sam_options": {"ascent_fraction": 0.5}}
    for name, given in (
        ("noise40-linear-none-seed1", {"sam": "none"}),
        ("noise40-wsd-sam-seed2", sam),
    ):
        folder = finished(tmp_path / "runs" / name, 1, given, 0.75)
        (folder / "eval_results.json").write_text("{}")
    state = {"max_steps": 4, "log_history": [{"epoch": 1.0, "loss": 1.0, evidence.SHARE: 0.5}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    result = machine.read(evidence.collect(plan, tmp_path / "runs", tmp_path / "results"))
    assert [(r["method"], r["seed"], r["passes"]) for r in result["runs"]] == [
        ("none", 1, 1.0),
        ("sam", 2, 1.25),
    ]
    assert result["runs"][1]["options"] == "sam:when=after:0.5,ascent_fraction=0.5"


def test_prepare_flips_the_share_that_it_says(tmp_path: Path) -> None:
    import pandas as pd

    source = tmp_path / "sst2"
    source.mkdir()
    sentences = ["a " * n for n in (1, 2, 13)] * 10
    frame = pd.DataFrame({"sentence": sentences, "label": [0, 1, 1] * 10, "idx": range(30)})
    for name in ("train", "validation"):
        frame.to_parquet(source / f"{name}.parquet")
    evidence.prepare(source, tmp_path / "out", count=20)
    clean, noisy = (
        pd.read_csv(tmp_path / "out" / f"sst2-20-noise{noise}.csv") for noise in (0, 40)
    )
    assert len(clean) == 20 and (clean.sentence == noisy.sentence).all()
    assert (clean.label != noisy.label).sum() == 8
    assert clean.sentence.str.split().str.len().max() == 2  # 13 words are too many
    whole = pd.read_csv(tmp_path / "out" / "sst2-validation.csv")
    assert len(whole) == 30 and whole.sentence.str.len().is_monotonic_decreasing


def test_the_page_is_made_from_the_results() -> None:
    plan = machine.RESULTS.parent / "plans" / "evidence-sst2.json"
    result = machine.read(machine.RESULTS / plan.name)
    assert evidence.PAGE.read_text(encoding="utf-8") == evidence.page(plan, result)
