# SPDX-License-Identifier: Apache-2.0
"""`hf-sam compare` from its command line to its page."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_sam import cli
from hf_sam.compare import command
from tests.compare.test_jobs import LAUNCH, gone
from tests.compare.test_record import FLAGS, SCRIPT
from tests.compare.test_report import assert_whole


def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two methods and one that fails; what is finished is not made again."""
    folder, tail = tmp_path / "out", "sam:rho=0.1,when=after:0.5"
    words = ["compare", "--output_dir", str(folder), "--jobs", "2", "--seeds", "3"]
    words += ["--launch", shlex.join(LAUNCH), "--methods"]
    script = ["--", SCRIPT, "--fail", "asam"]
    assert cli.main([*words, f"none,{tail},asam", *script]) == 1
    shown = capsys.readouterr().out
    assert "9/9" in shown and "asam, seed 3: failed" in shown and "the last line" in shown
    assert f"{tail} beats none: better in 3 of 3 seeds, +2.00 ± 0.00 points, at 1.00" in shown
    results = json.loads((folder / "results.json").read_text())
    assert results["missing"] == [f"asam, seed {seed}" for seed in (1, 2, 3)]
    page = (folder / "report.html").read_text()
    assert_whole(page, results)
    assert "3 planned runs did not finish: asam, seed 1; asam, seed 2; asam, seed 3." in page
    assert cli.main([*words, f"none,{tail}", *script]) == 0  # nothing is made again
    assert "done in" not in capsys.readouterr().out
    assert cli.main(["report", str(folder), "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["settings"] == results["settings"]
    assert again["missing"] == results["missing"]


def test_nothing_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that fails at once is one line with what it said last."""
    words = ["--output_dir", str(tmp_path / "out"), "--launch", shlex.join(LAUNCH)]
    assert cli.main(["compare", "--methods", "none", *words, "--", SCRIPT, "--fail", "all"]) == 2
    assert "no run is finished; none, seed 1: the last line (see " in capsys.readouterr().err


def test_a_metric_that_is_not_there_is_found_after_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    words = ["compare", "--methods", "none", "--output_dir", str(folder), "--metric", "acuracy"]
    assert cli.main([*words, "--launch", shlex.join(LAUNCH), "--", SCRIPT]) == 2
    said = capsys.readouterr().err
    assert "--metric acuracy: the runs have in common eval_accuracy" in said
    assert len(list(folder.rglob("run.json"))) == 1


@pytest.mark.slow
def test_a_real_script_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Killed while the second run trains, the run ends too; the same command makes only that."""
    folder = tmp_path / "out"
    flags = FLAGS[: FLAGS.index("--sam_track_memory")]
    words = [*("-m", "hf_sam.cli", "compare", "--methods", "none,sam", "--seeds", "1")]
    words += ["--output_dir", str(folder), "--", SCRIPT, *flags]
    first, second = (folder / "runs" / f"{name}-seed1" for name in ("none", "sam"))
    with subprocess.Popen([sys.executable, *words]) as process:
        while not (second / "log.txt").is_file():
            time.sleep(0.05)
        (child,) = psutil.Process(process.pid).children()
        time.sleep(3.0)  # let it ask the kernel to end it with its parent
        process.kill()
    assert gone(child.pid)
    made = (first / "run.json").stat().st_mtime_ns
    assert not (second / "run.json").exists()
    assert subprocess.run([sys.executable, *words], check=False).returncode == 0
    assert (first / "run.json").stat().st_mtime_ns == made
    results = json.loads((folder / "results.json").read_text())
    assert_whole((folder / "report.html").read_text(), results)
    names = {path.stem for path in folder.glob("*.png")}
    assert {"difference", "pareto", "training", "scores", "sharpness"} <= names
    assert not list(folder.rglob("*.safetensors"))


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
