# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import glue, machine

FAKE_SCRIPT = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(flags["--output_dir"])
folder.mkdir(parents=True)
scores = [{"epoch": e, "step": 9 * e, "eval_accuracy": a, "eval_f1": a, "eval_runtime": 3.0}
          for e, a in ((1.0, 0.5), (2.0, float(flags["--best"])), (3.0, 0.6))]
log = [{"epoch": 1.0, "loss": 0.3}, *scores]
(folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
results = scores[-1] | {"arguments": {"task_name": "mrpc", "data_dir": "/somewhere/else/data"}}
(folder / "all_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of two runs of a script that only writes what run_glue.py would."""
    script = tmp_path / "script.py"
    script.write_text(FAKE_SCRIPT)
    monkeypatch.setattr(glue, "SCRIPT", script)
    path = tmp_path / "plan.json"
    runs = {"a": {"best": 0.7}, "b": {"best": 0.8}}
    path.write_text(json.dumps({"common": {"task_name": "mrpc"}, "runs": runs}))
    return path


def test_a_plan_is_made_once(plan: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    runs = glue.read_plan(plan)
    assert glue.run_plan(runs, tmp_path / "runs", results) == ["a", "b"]
    assert glue.run_plan(runs, tmp_path / "runs", results) == []
    (results / "glue-b.json").unlink()
    assert glue.run_plan(runs, tmp_path / "runs", results) == []  # the run itself is there
    assert sorted(p.name for p in results.iterdir()) == ["glue-a.json", "glue-b.json"]


def test_the_result_knows_the_best_epoch_and_no_folder(plan: Path, tmp_path: Path) -> None:
    words = ["--results", str(tmp_path / "results"), "run", str(plan)]
    glue.main([*words, "--only", "b", "--output_dir", str(tmp_path / "runs")])
    result = machine.read(tmp_path / "results" / "glue-b.json")
    assert result["best"] == {"epoch": 2.0, "step": 18, "eval_accuracy": 0.8, "eval_f1": 0.8}
    assert result["final"]["eval_accuracy"] == 0.6
    assert [entry["epoch"] for entry in result["history"]] == [1.0, 2.0, 3.0]
    assert result["all_results"]["arguments"]["data_dir"] == "data"
    assert not (tmp_path / "runs" / "a").exists()


def test_a_failed_run_stops_the_plan(plan: Path, tmp_path: Path) -> None:
    runs = {"bad": {"best": "no number"}} | glue.read_plan(plan)
    with pytest.raises(Exception, match="non-zero exit status"):
        glue.run_plan(runs, tmp_path / "runs", tmp_path / "results")
    assert "could not convert" in (tmp_path / "runs" / "bad.log").read_text()


def test_unfinished_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half").mkdir()
    assert glue.collect_all([tmp_path / "half"], tmp_path) == []
    assert "half: has no all_results.json: the run is not finished" in capsys.readouterr().err


def test_a_run_without_evaluation_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    (tmp_path / "all_results.json").write_text('{"arguments": {"task_name": "cola"}}')
    with pytest.raises(FileNotFoundError, match="no eval_matthews_correlation"):
        glue.collect(tmp_path)


@pytest.mark.parametrize(
    ("text", "only", "said"),
    [
        ("{}", [], "is no plan"),
        ("not JSON", [], "is no plan"),
        ('{"common": {}, "runs": {"mrpc-sam": {}}}', ["mrpc-asm"], "did you mean 'mrpc-sam'"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, text: str, only: list[str], said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        glue.read_plan(path, only)


def test_flags() -> None:
    values: dict[str, Any] = {"seed": 1, "sam_where": ["norm", "bias"], "sam_options": {"k": 3}}
    assert glue.flags_of(values) == ([
        "--seed",
        "1",
        "--sam_where",
        "norm",
        "bias",
        "--sam_options",
        '{"k": 3}',
    ])


def test_the_plans_are_arguments_of_run_glue(tmp_path: Path) -> None:
    from glue_scripts.arguments import parse_arguments

    for path in (Path(glue.__file__).parent / "plans").glob("*.json"):
        for flags in glue.read_plan(path).values():
            words = glue.flags_of(flags | {"output_dir": str(tmp_path)})
            _, data, args = parse_arguments(words)
            assert data.task_name == flags.get("task_name")
            assert args.sam == flags["sam"]
