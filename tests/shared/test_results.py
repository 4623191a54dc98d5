# SPDX-License-Identifier: Apache-2.0
"""Peak memory, seconds per update, and what may be written down."""

import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sam.callbacks import MemoryCallback
from shared_scripts.results import MB, PeakMemory, UpdateTimer, origin, write_predictions


def test_the_peak_of_the_resident_set_is_seen_after_it_is_gone() -> None:
    with PeakMemory(torch.device("cpu"), interval=0.005) as idle:
        time.sleep(0.02)
    with PeakMemory(torch.device("cpu"), interval=0.005) as peak:
        block = np.ones(100 * MB, dtype=np.uint8)
        deadline = time.monotonic() + 5  # a busy machine may keep the thread waiting
        while peak.megabytes < idle.megabytes + 90 and time.monotonic() < deadline:
            time.sleep(0.01)
        del block
    assert peak.megabytes > idle.megabytes + 80


def test_the_thread_ends_after_an_error() -> None:
    peak = PeakMemory(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="inside"), peak:
        raise RuntimeError("inside")
    assert peak._thread is not None
    assert not peak._thread.is_alive()
    assert peak.megabytes > 50


@pytest.mark.gpu
def test_the_peak_of_cuda_is_torch_s_own() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated()
    with PeakMemory(device) as peak:
        block = torch.ones(100 * MB, dtype=torch.uint8, device=device)
        del block
    assert peak.megabytes == pytest.approx(before / MB + 100, abs=1)


def test_a_callback_that_resets_cudas_statistics_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [30 * MB]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: left[0])
    tracked = MemoryCallback()
    with PeakMemory(torch.device("cuda"), tracked=tracked) as peak:
        tracked.peak = 50 * MB
    assert peak.megabytes == 50
    left[0] = 70 * MB
    with PeakMemory(torch.device("cuda"), tracked=tracked) as peak:
        pass
    assert peak.megabytes == 70


def test_seconds_per_update_leave_evaluation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 100.0, 101.0])
    monkeypatch.setattr("shared_scripts.results.time.perf_counter", lambda: next(ticks))
    timer = UpdateTimer()
    assert timer.metrics() == {}
    timer.on_train_begin()
    timer.on_step_begin()
    timer.on_step_end()
    timer.on_step_begin()
    timer.on_step_end()
    timer.on_evaluate()
    timer.on_step_begin()
    timer.on_step_end()
    assert timer.seconds == [1.0, 2.0, 1.0]
    means = {"seconds_per_update": 4 / 3, "median_seconds_per_update": 1.0}
    assert timer.metrics() == pytest.approx(means)


@dataclass
class Group:
    rate: float = 0.1
    names: list[str] = field(default_factory=lambda: ["all"])
    token: str | None = None
    hub_token: str | None = None


def test_the_origin_of_a_run_keeps_no_secret() -> None:
    words = ["--token", "abc", "--hub-token=def", "--rate", "0.2"]
    run = origin("glue_scripts/run_glue.py", [Group(rate=0.2, token="abc", hub_token="def")], words)
    assert run["arguments"] == {"rate": 0.2}
    start = "python glue_scripts/run_glue.py "
    assert run["command"] == start + "--token ... --hub-token=... --rate 0.2"
    assert run["versions"]["torch"] == metadata.version("torch")


def test_predictions_of_numbers_and_of_names(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a.txt", [0.12345, 4.0])
    write_predictions(tmp_path / "b.txt", ["yes", "no"])
    assert (tmp_path / "a.txt").read_text() == "index\tprediction\n0\t0.123\n1\t4.000\n"
    assert (tmp_path / "b.txt").read_text() == "index\tprediction\n0\tyes\n1\tno\n"
