# SPDX-License-Identifier: Apache-2.0
"""Memory per phase: the right peak under the right name, with any Trainer, and nothing when off."""

from __future__ import annotations

import gc
import json
import logging
import mmap
import threading
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_sam.callbacks import MemoryCallback, memory
from hf_sam.callbacks.memory import MB, Counter, Sampler, meter_for
from tests.toys import assert_equal, examples, make_trainer, train, weights

UPDATE = {"ascent", "perturb", "descent", "restore", "optimizer"}


def sampling() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "hf_sam memory"]


def phases(logs: dict[str, float]) -> set[str]:
    """Return the phases of which a log knows the memory."""
    names = [k.removeprefix("memory/").removesuffix("_mb") for k in logs if k.startswith("memory/")]
    return set(names) - {"peak"}


class Reporter(TrainerCallback):
    """Keeps what it is told, as W&B's callback would."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_):
        self.logs.append(dict(logs))


class Script:
    """A meter whose n-th answer is n MB, and half as much again held by the allocator."""

    def __init__(self) -> None:
        self.turns = 0
        self.closed = False

    def turn(self) -> dict[str, int]:
        self.turns += 1
        return {"": self.turns * MB, "_reserved": self.turns * MB * 3 // 2}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    meter = Script()
    monkeypatch.setattr(memory, "meter_for", lambda model: meter)
    yield meter


def test_sam_trainer_logs_each_phase(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the logs that reporters see, the metrics, train_results.json, and a line at the end."""
    reporter = Reporter()
    trainer = make_trainer(
        tmp_path,
        sam="sam",
        sam_track_memory=True,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        eval_data=examples("bert", 8),
        callbacks=[reporter],
    )
    with caplog.at_level(logging.INFO, "hf_sam.callbacks.memory"):
        metrics = trainer.train().metrics
    training = [logs for logs in reporter.logs if "loss" in logs]
    assert [phases(logs) - {"evaluate"} for logs in training] == [UPDATE] * 4
    assert all(phases(logs) == set() for logs in reporter.logs if "eval_loss" in logs)
    assert phases(metrics) == UPDATE | {"evaluate"}
    assert metrics["memory/peak_mb"] == max(metrics[f"memory/{phase}_mb"] for phase in UPDATE)
    trainer.save_metrics("train", metrics)
    saved = json.loads((tmp_path / "train_results.json").read_text())
    assert saved["memory/descent_mb"] == metrics["memory/descent_mb"] > 50
    lines = [r.getMessage() for r in caplog.records if r.name == "hf_sam.callbacks.memory"]
    assert {line.split(": ")[0] for line in lines} == {
        f"Peak memory, {phase}" for phase in UPDATE | {"evaluate"}
    }
    assert not sampling()


def test_the_plain_trainer_logs_it_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, cls=Trainer, max_steps=3, callbacks=[MemoryCallback()])
    metrics = trainer.train().metrics
    assert phases(metrics) == {"pass", "optimizer"}
    assert len([logs for logs in trainer.state.log_history if "memory/pass_mb" in logs]) == 4
    assert not sampling()


@pytest.mark.parametrize("sam", ["none", "sam"])
def test_it_changes_nothing(sam: str, tmp_path: Path) -> None:
    common = {"sam": sam, "dropout": 0.1, "max_steps": 3}
    tracked = train(tmp_path / "on", sam_track_memory=True, **common)
    assert_equal(weights(tracked), weights(train(tmp_path / "off", **common)))


def test_a_peak_belongs_to_its_phase(script: Script, tmp_path: Path) -> None:
    """Answers 1 to 7 of an update: what came before it, its five phases, and what follows; the
    callback given beside the argument is the one that is used.
    """
    tracked = MemoryCallback()
    trainer = make_trainer(
        tmp_path, max_steps=4, logging_steps=2, sam_track_memory=True, callbacks=[tracked]
    )
    metrics = trainer.train().metrics
    assert Tally(type(c) for c in trainer.callback_handler.callbacks)[MemoryCallback] == 1
    first, second, run = [
        {k.removeprefix("memory/"): v for k, v in logs.items() if k.startswith("memory/")}
        for logs in trainer.state.log_history
        if "memory/peak_mb" in logs
    ]
    order = ["ascent", "perturb", "descent", "restore", "optimizer"]
    for found, before in ((first, 6), (second, 18)):  # six answers an update, the larger counts
        expected = {f"{phase}_mb": before + 2.0 + i for i, phase in enumerate(order)}
        expected["peak_mb"] = before + 6.0
        reserved = {k.replace("_mb", "_reserved_mb"): v * 1.5 for k, v in expected.items()}
        assert found == expected | reserved
    assert run == second and script.closed
    assert tracked.peak == script.turns * MB  # also what no phase is responsible for
    assert {k: v for k, v in metrics.items() if k.startswith("memory/")} == {
        f"memory/{k}": v for k, v in run.items()
    }


def test_groups_count_as_their_largest(script: Script, tmp_path: Path) -> None:
    """mSAM passes through the phases once per group: the last answers are the largest."""
    trainer = train(
        tmp_path, max_steps=1, sam="msam", sam_options="micro_batches=2", sam_track_memory=True
    )
    logs = trainer.state.log_history[0]
    assert [logs[f"memory/{p}_mb"] for p in ("ascent", "restore", "optimizer")] == [6, 9, 10]


def test_off_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No callback, no thread, nothing measured."""

    def never(model: torch.nn.Module) -> None:
        raise AssertionError("measured without being asked")

    monkeypatch.setattr(memory, "meter_for", never)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.extend(sampling())

    trainer = train(tmp_path, max_steps=2, callbacks=[Watch()])
    kinds = {type(c) for c in trainer.callback_handler.callbacks}
    assert MemoryCallback not in kinds and Watch in kinds and not seen
    assert not any(phases(logs) for logs in trainer.state.log_history)


def test_a_run_after_a_failed_one_starts_over(tmp_path: Path) -> None:
    class FailOnce(TrainerCallback):
        left = 1

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("interrupted")

    trainer = make_trainer(tmp_path, max_steps=2, sam_track_memory=True, callbacks=[FailOnce()])
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.train()
    assert phases(trainer.train().metrics) == UPDATE
    assert not sampling()


class TestSampler:
    def test_it_sees_what_comes_and_goes_between_two_turns(self) -> None:
        now, looked = [10], threading.Event()

        def read() -> int:
            if now[0] == 100 and threading.current_thread() is not threading.main_thread():
                looked.set()
            return now[0]

        sampler = Sampler(read)
        assert sampler.turn() == {"": 10}
        now[0] = 100
        assert looked.wait(10)
        looked.clear()
        assert looked.wait(10), "the look before is written down"
        now[0] = 20
        assert sampler.turn() == {"": 100}
        sampler.close()
        assert sampler.turn() == {"": 20} and not sampling()

    def test_its_thread_ends_when_it_is_forgotten(self) -> None:
        sampler = Sampler(lambda: 0)
        thread = sampler.thread
        del sampler
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()

    def test_on_cpu_it_is_the_resident_set(self) -> None:
        meter = meter_for(torch.nn.Linear(2, 2))
        assert isinstance(meter, Sampler)
        gc.collect()
        meter.turn()  # may still hold a peak of what other tests have freed since
        before = meter.turn()[""]
        with mmap.mmap(-1, 64 * MB) as pages:  # new pages: an allocator may hand out old ones
            for start in range(0, 64 * MB, mmap.PAGESIZE):
                pages[start] = 1
            held = meter.turn()[""]
        meter.close()
        assert 60 * MB < held - before < 80 * MB


class TestCounter:
    def test_it_adds_devices_up_and_starts_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reset: list[torch.device] = []

        def stats(device: torch.device) -> dict[str, int]:
            size = 10 ** (device.index + 1)
            return {"allocated_bytes.all.peak": size, "reserved_bytes.all.peak": 2 * size}

        monkeypatch.setattr(torch.accelerator, "memory_stats", stats)
        monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", reset.append)
        devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
        counter = Counter(devices)
        assert reset == devices
        assert counter.turn() == {"": 110, "_reserved": 220} and reset == devices * 2

    @pytest.mark.gpu
    def test_it_is_exact(self) -> None:
        device = torch.accelerator.current_accelerator()
        meter = meter_for(torch.nn.Linear(2, 2).to(device))
        assert isinstance(meter, Counter)
        before = meter.turn()[""]
        block = torch.empty(64 * MB, dtype=torch.uint8, device=device)
        del block
        peaks = meter.turn()
        assert peaks[""] - before == 64 * MB and peaks["_reserved"] >= peaks[""]
        assert meter.turn()[""] == before
