# SPDX-License-Identifier: Apache-2.0
"""`hf-sam compare` from its command line to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_sam import cli
from hf_sam.compare import command
from tests.compare.test_record import FLAGS, SCRIPT
from tests.compare.test_report import assert_whole


def test_a_comparison(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two methods and one that fails, on a tiny script; what is finished is not made again."""
    folder = tmp_path / "out"
    flags = [*FLAGS[: FLAGS.index("--sam_track_memory")], "--fail_with", "asam"]
    methods = "none,sam:rho=0.1,when=after:0.5"
    words = ["compare", "--output_dir", str(folder), "--jobs", "2", "--seeds", "1", "--methods"]
    assert cli.main([*words, f"{methods},asam", "--", SCRIPT, *flags]) == 1
    shown = capfd.readouterr().out
    assert "3/3" in shown and "asam, seed 1: failed" in shown and "out of luck" in shown
    assert "One seed is too few to tell a difference from noise" in shown
    results = json.loads((folder / "results.json").read_text())
    assert results["missing"] == ["asam, seed 1"]
    page = (folder / "report.html").read_text()
    assert_whole(page, results)
    assert "1 planned run did not finish" in page
    names = {path.stem for path in folder.glob("*.png")}
    assert {"difference", "pareto", "training", "scores", "sharpness"} <= names
    assert not list(folder.rglob("*.safetensors"))
    assert cli.main([*words, methods, "--", SCRIPT, *flags]) == 0  # nothing is made again
    assert "done in" not in capfd.readouterr().out
    assert cli.main(["report", str(folder), "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["settings"] == results["settings"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "none,sma", "--", SCRIPT], "'sma' is not a method"),
        (["--methods", "none,sam"], "no script to run"),
        (["--methods", "none,sam", "--", "nowhere.py"], "nowhere.py: there is no such script"),
        (["--methods", "none,sam", "--", SCRIPT, "--seed", "1"], "--seed is set by"),
    ],
)
def test_errors_are_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--output_dir", str(tmp_path / "out"), *argv]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [1, 2, 3]), ("1", [1]), ("7,2", [7, 2]), ("7,", [7])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert command.seeds(text) == seeds


@pytest.mark.parametrize("flag", [["--seeds", "0"], ["--seeds", "1,1"], ["--jobs", "-1"]])
def test_numbers_that_are_refused(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--methods", "none", *flag, "--", SCRIPT])
    assert flag[1].strip("-") in capsys.readouterr().err


def test_a_missing_library_is_found_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "LIBRARIES", ("no_such_library",))
    out = str(tmp_path / "out")
    assert cli.main(["compare", "--methods", "none", "--output_dir", out, "--", SCRIPT]) == 2
    assert "needs no_such_library: pip install 'hf-sam[report]'" in capsys.readouterr().err
