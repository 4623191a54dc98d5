# SPDX-License-Identifier: Apache-2.0
"""Own files are written whole, broken ones are survived, and the newest whole checkpoint counts."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from shared_scripts.checkpoints import broken, checkpoint
from shared_scripts.errors import InputError
from shared_scripts.files import read_json, write_json, write_text


def make(folder: Path, step: int, shards: int = 1) -> Path:
    """Writes a checkpoint as Trainer does."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    names = [f"model-{n}.safetensors" for n in range(shards)]
    for name in names:
        save_file({"w": torch.ones(8)}, path / name)
    index = {"weight_map": {f"w{n}": name for n, name in enumerate(names)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(4)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no state": ("trainer_state.json", Path.unlink, "which is written last, is missing"),
    "half a state": ("trainer_state.json", halve, "trainer_state.json is cut short"),
    "empty state": ("trainer_state.json", empty, "trainer_state.json is cut short"),
    "half the weights": ("model-0.safetensors", halve, "model-0.safetensors is cut short"),
    "empty weights": ("model-1.safetensors", empty, "model-1.safetensors is cut short"),
    "a shard is gone": ("model-1.safetensors", Path.unlink, "model-1.safetensors, which"),
    "half the optimizer": ("optimizer.pt", halve, "optimizer.pt is cut short"),
    "no optimizer": ("optimizer.pt", Path.unlink, "optimizer.pt is missing"),
    "half the random state": ("rng_state.pth", halve, "rng_state.pth is cut short"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_newest_whole_checkpoint_is_resumed(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    name, damage, reason = FAULTS[fault]
    older, newest = make(tmp_path, 9, shards=2), make(tmp_path, 10, shards=2)
    args = TrainingArguments(str(tmp_path), resume_from_checkpoint="true", do_train=True)
    assert checkpoint(args) == str(newest)
    damage(newest / name)
    assert reason in str(broken(newest))
    assert checkpoint(args) == str(older)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(newest) in record.message
    args.resume_from_checkpoint = str(newest)
    with pytest.raises(InputError, match="checkpoint-10: it is broken .*give an older one.*-9"):
        checkpoint(args)
    damage(older / name)
    args.resume_from_checkpoint = "true"
    with pytest.raises(InputError, match="every checkpoint in it is broken"):
        checkpoint(args)


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-4").write_text("")
    args = TrainingArguments(str(tmp_path), resume_from_checkpoint="true")
    assert checkpoint(args) == str(path)
    for name in ("scheduler.pt", "optimizer.pt"):
        (path / name).unlink()
    assert broken(path) is None  # saved with --save_only_model
    for shard in path.glob("model*"):
        shard.unlink()
    assert broken(path) == "its weights are missing"


@pytest.mark.parametrize(("saved", "here", "fault"), [(4, 4, True), (3, 4, False), (4, 2, False)])
def test_a_process_that_ended_while_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, here: int, fault: bool
) -> None:
    """Each of them writes its random state by itself, after the first one wrote the rest."""
    path = make(tmp_path, 3)
    for n in range(3):
        shutil.copy(path / "rng_state.pth", path / f"rng_state_{n}.pth")
    (path / "rng_state.pth").unlink()
    (path / "sam_state.json").write_text(json.dumps({"about": {"processes": saved}}))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert broken(path) == (
        "rng_state_3.pth is missing: its process ended while it saved" if fault else None
    )
    (path / "sam_state.json").unlink()
    assert broken(path) is None
    (path / "rng_state_1.pth").unlink()  # which there is if there are several
    assert "rng_state_1.pth is missing" in str(broken(path))


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all_results.json"
    write_json(path, {"b": 1, "a": 2})
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}

    def full(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(b"ha")
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "half")
    assert json.loads(path.read_text()) == {"a": 2, "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["all_results.json"]


@pytest.mark.parametrize("content", [b'{"a": 1, "b', b"", b"[1, 2]", b"\xff\xfe\x00", b"null"])
def test_a_broken_file_of_an_earlier_run_is_said(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "all_results.json"
    assert read_json(path) == {}
    assert not caplog.records
    path.write_bytes(content)
    assert read_json(path) == {}
    assert str(path) in caplog.text
