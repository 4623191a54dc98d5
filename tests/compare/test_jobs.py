# SPDX-License-Identifier: Apache-2.0
"""Runs side by side, resumed, failed and interrupted; a small program stands in for each."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from hf_sam.compare import jobs, making
from hf_sam.compare.display import Display, time_left
from hf_sam.compare.rows import Row

LAUNCH = (sys.executable, str(Path(__file__).with_name("launcher.py")))
SETTINGS = making.Settings(launch=LAUNCH)
SCRIPT = __file__


def planned(folder: Path, *words: str, seeds: Sequence[int] = (1, 2)) -> list[jobs.Job]:
    rows = [Row("none", "none"), Row("sam:rho=0.1", "sam", {"sam_rho": "0.1"})]
    return jobs.plan(rows, seeds, [SCRIPT, *words], folder)


def ignore(running: Sequence[making.Running], ended: Sequence[making.Running]) -> None:
    pass


def test_the_words_of_a_run(tmp_path: Path) -> None:
    found = planned(tmp_path, "--do_train", seeds=[7])
    assert [job.folder.name for job in found] == ["none-seed7", "sam-rho0.1-seed7"]
    output = str(tmp_path / "runs" / "sam-rho0.1-seed7" / "output")
    assert found[1].words == (
        *(SCRIPT, "--do_train", "--sam_track_memory", "true", "--sam", "sam", "--sam_rho", "0.1"),
        *("--seed", "7", "--output_dir", output),
    )


def test_all_methods_of_a_seed_come_first(tmp_path: Path) -> None:
    order = [(job.row.method, job.seed) for job in planned(tmp_path)]
    assert order == [("none", 1), ("sam", 1), ("none", 2), ("sam", 2)]


def test_names_of_folders_differ() -> None:
    texts = ["sam:rho=0.1", "sam:rho=0.1,when=after:0.5", "sam:rho=lr:0.1", "sam", "none"]
    assert len({jobs.slug(text) for text in texts}) == len(texts)
    assert all("/" not in jobs.slug(text) for text in [*texts, "none:--name=a/b"])


def test_what_is_finished_is_not_made_again(tmp_path: Path) -> None:
    found = planned(tmp_path)
    started: list[jobs.Job] = []

    def watch(running: Sequence[making.Running], ended: Sequence[making.Running]) -> None:
        started.extend(run.job for run in ended)

    assert making.make(found[:3], dataclasses.replace(SETTINGS, parallel=3), watch) == []
    assert sorted(job.name for job in started) == sorted(job.name for job in found[:3])
    assert making.make(found, SETTINGS, watch) == []
    assert started[3:] == found[3:]
    assert all(job.finished for job in found)


@pytest.mark.parametrize("keep", [False, True])
def test_weights_are_kept_only_if_asked_for(keep: bool, tmp_path: Path) -> None:
    job = planned(tmp_path)[0]
    making.make([job], dataclasses.replace(SETTINGS, keep_models=keep), ignore)
    output = job.folder / "output"
    assert (output / "all_results.json").is_file()
    assert (output / "model.safetensors").is_file() is keep
    assert (output / "checkpoint-4").is_dir() is keep


def test_the_first_failure_stops_a_script_that_never_worked(tmp_path: Path) -> None:
    found = planned(tmp_path, "--fail", "all")
    assert making.make(found, SETTINGS, ignore) == found[:1]
    assert found[0].last_words == "the last line"
    assert not found[1].folder.exists()


def test_a_failure_later_on_stops_nothing(tmp_path: Path) -> None:
    good = planned(tmp_path)
    bad = dataclasses.replace(good[1], words=(*good[1].words, "--fail", "all"))
    assert making.make([good[0], bad, good[2]], SETTINGS, ignore) == [bad]
    assert good[2].finished


def test_an_interrupt_ends_every_process_and_the_next_try_goes_on(tmp_path: Path) -> None:
    first, *others = planned(tmp_path)
    waiting = [dataclasses.replace(job, words=(*job.words, "--wait")) for job in others[:2]]
    seen: list[float] = []

    def interrupt(running: Sequence[making.Running], ended: Sequence[making.Running]) -> None:
        if len(running) == 2 and all((run.job.folder / "child").exists() for run in running):
            seen.extend(run.job.progress for run in running)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), making.interruptible():
        making.make([first, *waiting], dataclasses.replace(SETTINGS, parallel=2), interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert seen == [0.25, 0.25]
    for job in waiting:
        assert gone(int((job.folder / "child").read_text()))
    assert [job.finished for job in (first, *waiting)] == [True, False, False]
    again = [first, *others]
    assert making.make(again, SETTINGS, ignore) == []
    assert all(job.finished for job in again)
    assert not (waiting[0].folder / "child").exists()  # the run began anew


def gone(pid: int) -> bool:
    """Whether a process has ended, within a moment."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_another_command_needs_another_folder(tmp_path: Path) -> None:
    found = planned(tmp_path)
    jobs.remember(tmp_path, found[:2], [SCRIPT, "--a", "1"])
    jobs.remember(tmp_path, found[2:], [SCRIPT, "--a", "1"])  # more seeds are welcome
    assert len(jobs.json.loads((tmp_path / "plan.json").read_text())["jobs"]) == 4
    with pytest.raises(ValueError, match="holds the runs of other arguments, .*--a 1"):
        jobs.remember(tmp_path, found, [SCRIPT, "--a", "2"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([], "no script to run"),
        (["-m"], "no script to run"),
        (["missing.py"], "missing.py: there is no such script"),
        ([SCRIPT, "--seed", "1"], "--seed is set by the comparison"),
        ([SCRIPT, "--seed=1"], "--seed is set by the comparison"),
        ([SCRIPT, "--output-dir", "x"], "--output-dir is set by the comparison"),
        ([SCRIPT, "--sam", "sam"], "--sam is set by the comparison"),
        ([SCRIPT, "--sam_rho=1"], "--sam_rho is set by the comparison"),
        ([SCRIPT, "--load_best_model_at_end"], "is set by the comparison"),
    ],
)
def test_scripts_that_are_refused(script: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jobs.check_script(script)


def test_a_module_is_a_script() -> None:
    jobs.check_script(["-m", "package.module", "--do_train"])


@pytest.mark.parametrize(
    ("waiting", "running", "took", "parallel", "seconds"),
    [
        ({"none": 2}, [], {}, 1, None),
        ({"none": 2, "sam": 1}, [], {"none": [10.0, 14.0], "sam": [20.0]}, 1, 44.0),
        ({"none": 2, "sam": 1}, [], {"none": [12.0], "sam": [20.0]}, 2, 22.0),
        ({"none": 1}, [("sam", 0.25, 5.0)], {}, 1, 20.0 + 15.0),  # at the pace of the other
        ({}, [("sam", 0.5, 30.0)], {"none": [1.0]}, 4, 30.0),
        ({}, [("sam", 0.0, 5.0)], {"sam": [20.0]}, 1, 15.0),
        ({}, [("sam", 0.0, 25.0)], {"sam": [20.0]}, 1, 0.0),
    ],
)
def test_the_time_left(
    waiting: dict[str, int],
    running: list[tuple[str, float, float]],
    took: dict[str, list[float]],
    parallel: int,
    seconds: float | None,
) -> None:
    assert time_left(waiting, running, took, parallel) == seconds


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display(terminal: bool, tmp_path: Path) -> None:
    good = planned(tmp_path)
    bad = dataclasses.replace(good[1], words=(*good[1].words, "--fail", "all"))
    shown = Console(file=StringIO(), force_terminal=terminal, width=200)
    display = Display([good[0], bad, good[2]], 1, shown)
    with display.bars:
        making.make([good[0], bad, good[2]], SETTINGS, display)
    text = shown.file.getvalue()
    assert "1/3  none, seed 1: done in 0:00:0" in text
    assert "2/3  sam:rho=0.1, seed 1: failed after 0:00:0" in text and "the last line" in text
    assert "3/3  none, seed 2: done" in text
    assert ("all runs" in text) is terminal
