# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a script, and that recording changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import trainer

from hf_sam.compare import record

SCRIPT = str(Path(__file__).with_name("script.py"))
FLAGS = [
    *("--use_cpu", "--num_train_epochs", "3", "--learning_rate", "0.1", "--eval_strategy", "epoch"),
    *("--per_device_train_batch_size", "8", "--logging_steps", "2", "--save_strategy", "no"),
    *("--report_to", "none", "--disable_tqdm", "true", "--sam_track_memory", "true", "--seed", "3"),
]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the list of callbacks, the words and the path of this process."""
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", list(trainer.DEFAULT_CALLBACKS))
    monkeypatch.setattr(record.Recorder, "found", [])
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield


def run(folder: Path, *flags: str, examples: int = 16) -> dict[str, Any]:
    folder.mkdir()
    output = str(folder / "output")
    record.main([str(folder), str(examples), SCRIPT, *FLAGS, "--output_dir", output, *flags])
    return json.loads((folder / "run.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "output" / "model.safetensors")


def test_a_run(tmp_path: Path) -> None:
    found = run(tmp_path / "run", "--sam", "sam", "--sam_rho", "0.1")
    assert (found["seed"], found["updates"]) == (3, 12)
    assert set(found["metrics"]) == {"eval_loss", "eval_accuracy"}
    evaluations = [e for e in found["log"] if "eval_accuracy" in e]
    assert found["metrics"]["eval_accuracy"] == evaluations[-1]["eval_accuracy"]
    assert [e["step"] for e in evaluations] == [4, 8, 12, 12]
    assert all(e["compare/sharpness"] > 0 for e in evaluations)
    assert found["no_sharpness"] == ""
    assert found["seconds_per_update"] > 0 and found["memory_mb"] > 0
    assert found["cpu_seconds_per_update"] > 0
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["command"].startswith(f"python {SCRIPT} --use_cpu")
    assert (tmp_path / "run" / "progress").read_text().split()[1] == "12"


def test_recording_changes_nothing(tmp_path: Path) -> None:
    """The weights are those of the script alone, bit for bit, with and without the sharpness."""
    output = str(tmp_path / "alone" / "output")
    sys.argv = [SCRIPT, *FLAGS, "--output_dir", output]
    with pytest.raises(SystemExit):
        record.run(SCRIPT, [*FLAGS, "--output_dir", output])
    alone = weights(tmp_path / "alone")
    for name, examples in (("with", 16), ("without", 0)):
        found = run(tmp_path / name, examples=examples)
        recorded = weights(tmp_path / name)
        assert all(torch.equal(alone[key], recorded[key]) for key in alone)
        assert bool(found["no_sharpness"]) is (examples == 0)


def test_the_last_model_must_be_evaluated(tmp_path: Path) -> None:
    flags = ("--eval_strategy", "no", "--evaluate", "false")
    with pytest.raises(SystemExit, match=r"no evaluation after the last update \(12\)"):
        run(tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_best_epoch_is_refused(tmp_path: Path) -> None:
    flags = ("--load_best_model_at_end", "true", "--save_strategy", "epoch")
    with pytest.raises(ValueError, match="load_best_model_at_end=True would choose"):
        run(tmp_path / "run", *flags)


def test_a_script_that_fails_leaves_no_result(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="out of luck"):
        run(tmp_path / "run", "--fail_with", "3")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_script_without_a_trainer(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nassert sys.argv[1:] == ['--a', 'b']\nsys.exit(0)\n")
    with pytest.raises(SystemExit, match="trained nothing"):
        record.main([str(tmp_path), "0", str(script), "--a", "b"])


def test_the_last_evaluation_counts_and_of_two_sets_the_first() -> None:
    log = [
        {"step": 4, "eval_accuracy": 0.9, "eval_loss": 0.1},
        {"step": 8, "eval_accuracy": 0.7, "eval_loss": 0.3, "eval_runtime": 1.0},
        {"step": 8, "eval_accuracy": 0.6, "eval_loss": 0.4, "eval_f1": 0.5},
        {"step": 8, "train_loss": 0.2},
    ]
    wanted = {"eval_accuracy": 0.7, "eval_loss": 0.3, "eval_f1": 0.5}
    assert record.last_metrics(log, 8) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
def test_a_run_ends_with_its_parent() -> None:
    """Even a parent that is killed takes the run with it."""
    child = (
        "import time\nfrom hf_sam.compare.child import die_with_parent\ndie_with_parent()\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    parent = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}],\n"
        "    stdout=subprocess.PIPE, text=True)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\np.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    from tests.compare.test_jobs import gone

    assert gone(pid)


def test_a_torch_built_for_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose `current_accelerator` is `cuda` all the same, unless it is asked to look."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert "accelerator" not in record.hardware()


def test_averaged_weights_are_what_is_scored(tmp_path: Path) -> None:
    """The script does not see the comparison's own words, and its last model is the average."""
    plain = run(tmp_path / "plain", "--sam", "none", examples=0)
    mean = run(tmp_path / "mean", "--sam", "none", record.AVERAGE, "0.9", examples=0)
    assert record.AVERAGE not in mean["command"]
    losses = [[e["loss"] for e in found["log"] if "loss" in e] for found in (plain, mean)]
    assert losses[0] == losses[1]
    assert plain["metrics"]["eval_loss"] != mean["metrics"]["eval_loss"]
    ends = [weights(tmp_path / name) for name in ("plain", "mean")]
    assert any(not torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
