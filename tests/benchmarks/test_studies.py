# SPDX-License-Identifier: Apache-2.0
"""Studies are comparisons: their plans can be run, and their results are shown as they are."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import machine, studies
from hf_sam.compare.rows import parse_rows
from hf_sam.compare.runs import Run
from hf_sam.compare.summary import summarise

PLANS = [path.stem for path in sorted(studies.PLANS.glob("*.toml"))]


@pytest.mark.parametrize("name", PLANS)
def test_each_plan_compares_what_its_result_shows(name: str) -> None:
    words = shlex.split(studies.plan(name)["command"].replace("\\\n", ""))
    assert words[:2] == ["hf-sam", "compare"] and "--" in words
    rows = [row.name for row in parse_rows(words[words.index("--methods") + 1])]
    assert (machine.ROOT / words[words.index("--") + 1]).is_file()
    path = machine.RESULTS / f"{name}.json"
    if path.is_file():
        result, seeds = machine.read(path), int(words[words.index("--seeds") + 1])
        lines = [line for setting in result["settings"] for line in setting["lines"]]
        assert {line["method"] for line in lines} <= set(rows)
        finished = sum(len(line["seeds"]) for line in lines)
        assert finished + len(result["missing"]) == seeds * len(rows)


def ran(method: str, seed: int, accuracy: float) -> Run:
    log = [{"loss": 0.5, "epoch": 1.0}]
    log += [{"eval_accuracy": a, "epoch": e} for e, a in ((0.5, 0.4), (1.0, accuracy))]
    metrics = {"eval_accuracy": accuracy}
    return Run(method, seed, {}, metrics, log, 4, 2.0, None, "python /a/b/c.py", {"torch": "2"})


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan of a study that only writes what `hf-sam compare` would."""
    (tmp_path / "one.toml").write_text(
        'title = "One"\nabout = "About it."\ncommand = """\n'
        'hf-sam compare --methods none,\\\\\nsam --seeds 3 -- x.py"""\n'
    )
    monkeypatch.setattr(studies, "PLANS", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


def test_a_study_runs_and_is_shown(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(words: list[str]) -> int:
        called.append(words)
        found = [ran("none", s, 0.5 + s / 100) for s in (1, 2, 3)]
        found += [ran("sam", s, 0.52 + s / 100 + s / 1e4) for s in (1, 2, 3)]
        (made / "out").mkdir(exist_ok=True)
        (made / "out" / "results.json").write_text(json.dumps(summarise(found, "")))
        return 0

    monkeypatch.setattr(studies.cli, "main", call)
    assert studies.sections({})[0].endswith("Not measured.\n")
    assert studies.main(["one", "--output_dir", str(made / "out")]) == 0
    assert called[0] == [
        *("compare", "--output_dir", str(made / "out")),
        *("--methods", "none,sam", "--seeds", "3", "--", "x.py"),
    ]
    result = machine.read(made / "one.json")
    assert "curves" not in result["settings"][0]["runs"][0]
    assert result["settings"][0]["runs"][0]["scores"] == [0.4, 0.51]
    assert result["settings"][0]["runs"][0]["command"] == "python c.py"
    text = studies.sections({"one": result})[0]
    assert "| `sam` | 54.02 ± 1.01 | 40.00 | 3 | +2.02 ± 0.01 |" in text
    assert "| 3 of 3 | 1.00 | better in 3 of 3 seeds" in text
    assert "sam beats none" in text and "About it." in text


def test_an_interrupted_study_keeps_what_is_finished(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made / "out" / "runs" / "none-seed1" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")

    def call(words: list[str]) -> int:
        if words[0] == "compare":
            return studies.INTERRUPTED
        assert words == ["report", "--output_dir", str(made / "out"), str(made / "out")]
        found = summarise([ran("none", 1, 0.5)], "", missing=["sam, seed 1"])
        (made / "out" / "results.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(studies.cli, "main", call)
    assert studies.run("one", made / "out") == studies.INTERRUPTED
    text = studies.sections({"one": machine.read(made / "one.json")})[0]
    assert "Not finished: 1 of the planned runs." in text


def test_a_study_that_is_none() -> None:
    with pytest.raises(ValueError, match="'radius-mrcp' is no study; .*radius-mrpc"):
        studies.plan("radius-mrcp")
