# SPDX-License-Identifier: Apache-2.0
"""The study of the radius: a split, a plan over seeds, and what the page says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from benchmarks import figures, glue, machine, radius, tables
from glue_scripts.embedded import write_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("radius")
    write_task(root / "data", "mrpc", {"train": 64, "validation": 8, "test": 8})
    return root


def test_a_split_shares_nothing_and_keeps_the_labels(folder: Path) -> None:
    source = folder / "data" / "mrpc" / "train.parquet"
    radius.split(source, 32, 16, folder / "split" / "mrpc")
    whole = Dataset.from_parquet(str(source))
    parts = [
        Dataset.from_parquet(str(folder / "split" / "mrpc" / f"{name}.parquet"))
        for name in ("train", "validation")
    ]
    assert [len(part) for part in parts] == [32, 16]
    texts = [set(part["sentence1"]) for part in parts]
    assert not texts[0] & texts[1] and texts[0] | texts[1] <= set(whole["sentence1"])
    shares = [sum(part["label"]) / len(part) for part in (whole, *parts)]
    assert shares[1:] == pytest.approx([shares[0]] * 2, abs=1 / 16)
    with pytest.raises(ValueError, match="--train 60 --validation 16: train.parquet has 64"):
        radius.split(source, 60, 16, folder / "no")


def test_a_plan_goes_on_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every run of a seed before the next seed; a finished run is not made again."""
    made: list[str] = []

    def run(flags: dict, run_folder: Path) -> None:
        made.append(run_folder.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        run_folder.mkdir(parents=True)
        score = 0.7 + 0.01 * flags["seed"] + (0.02 if flags["sam"] == "sam" else 0.0)
        log = [{"loss": 0.5, "sam/perturbation_norm": 0.05} if flags["sam"] == "sam" else {}]
        state = {"log_history": [{"loss": 0.6}, *log]}
        (run_folder / "trainer_state.json").write_text(json.dumps(state))
        found = {"eval_accuracy": score, "eval_loss": 0.6, "command": "run_glue.py", "sam": {}}
        found["arguments"] = {"task_name": "mrpc"}
        (run_folder / "all_results.json").write_text(json.dumps(found))

    monkeypatch.setattr(glue, "run_glue", run)
    plan = tmp_path / "radius-mrpc.json"
    runs = {"none": {"sam": "none"}, "rho 0.05": {"sam": "sam"}}
    plan.write_text(json.dumps({"seeds": [1, 2], "common": {}, "about": "a toy", "runs": runs}))
    with pytest.raises(KeyboardInterrupt):
        radius.run_plan(plan, tmp_path, tmp_path / "results")
    path = radius.run_plan(plan, tmp_path, tmp_path / "results")
    assert made == ["none-seed1", "rho 0.05-seed1", "none-seed2", "none-seed2", "rho 0.05-seed2"]
    result = machine.read(path)
    plain, sam = radius.lines(result)
    assert plain.scores == pytest.approx((71, 72)) and plain.norm is None
    assert sam.gains == pytest.approx((2, 2)) and sam.norm == 0.05
    page = tables.readme({path.stem: result})
    assert "| rho 0.05 | 2 | 73.5 ± 0.7 | 2.0 ± 0.0 | 0.600 ± 0.000 | 0.050 |" in page
    figures.draw_radius(result, tmp_path / "radius.png")
    assert (tmp_path / "radius.png").stat().st_size > 10_000


@pytest.mark.parametrize("plan", [{"seeds": [1], "runs": {"a": {}}}, {"runs": {"none": {}}}])
def test_what_is_no_plan_is_refused(plan: dict, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"common": {}} | plan))
    with pytest.raises(ValueError, match='"seeds"'):
        radius.run_plan(path, tmp_path, tmp_path)
