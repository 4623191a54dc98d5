# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, run out of disk, or go on with something changed lose nothing, or say
what they lose.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_sam import SAMTrainer, __version__
from hf_sam.engine import checkpoint
from shared_scripts.checkpoints import broken, in_folder
from tests.cases import CASES, Case
from tests.toys import Trained, as_left, assert_equal, assert_same, examples, logged, train

STATEFUL = [case for case in CASES if case.stateful]


def settings_of(case: Case, **more: Any) -> dict[str, Any]:
    """Eight updates with dropout and accumulation, and a checkpoint after every second one."""
    model = case.toy("bert")
    return {
        "model": model,
        "sam": case.key,
        "sam_options": case.options or None,
        "dropout": 0.1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "data": examples(model, 40),
        "save_strategy": "steps",
        "save_steps": 2,
        **more,
    }


class Mortal(SAMTrainer):
    """Kills its own process in its n-th forward pass, or at the n-th file that a save touches."""

    passes: int | None = None
    files: int | None = None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and die in the middle of an update if it is time."""
        loss = super().compute_loss(*args, **kwargs)
        Mortal.passes = count_down(Mortal.passes)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        def touched(event: str, _: Any) -> None:
            if event in ("open", "os.rename", "os.mkdir", "os.remove"):
                Mortal.files = count_down(Mortal.files)

        if Mortal.files is not None:
            sys.addaudithook(touched)
        return super()._save_checkpoint(*args, **kwargs)


def count_down(left: int | None) -> int | None:
    """Return one less; at the end there is nobody to return to."""
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return None if left is None else left - 1


def until_killed(folder: Path, case: str, passes: int | None, files: int | None) -> None:
    """Train in a process of its own, which ends before the training does."""
    torch.set_num_threads(1)
    logging.disable()
    sys.stdout = open(os.devnull, "w")
    Mortal.passes, Mortal.files = passes, files
    found = next(one for one in CASES if one.key == case)
    train(folder, cls=Mortal, **settings_of(found))


def newest_whole(folder: Path) -> str | None:
    """Where a training goes on: its newest checkpoint that is whole, or None."""
    return next((str(path) for path in in_folder(folder) if broken(path) is None), None)


@functools.cache
def processes() -> Any:
    """A context whose processes begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conftest", "tests.test_faults"])
    return context


@pytest.mark.slow
@pytest.mark.parametrize("case", STATEFUL, ids=str)
def test_killed_anywhere_it_ends_as_if_undisturbed(case: Case, tmp_path: Path) -> None:
    """In passes at w and at perturbed weights, and at any file of a save: bit for bit."""
    whole = as_left(train(tmp_path / "whole", **settings_of(case)))
    draw = random.Random(case.key)
    moments = [(draw.randrange(4, 16), None) for _ in range(2)]
    moments += [(None, n) for n in sorted(draw.sample(range(80), 5))]
    went_on = 0
    for i, moment in enumerate(moments):
        folder = tmp_path / str(i)
        child = processes().Process(target=until_killed, args=(folder, case.key, *moment))
        child.start()
        child.join(timeout=300)
        assert child.exitcode == -signal.SIGKILL, moment
        resume = newest_whole(folder)
        went_on += resume is not None
        again = as_left(train(folder, resume=resume, **settings_of(case)))
        assert_undisturbed(again, whole)
    assert went_on > 0


def assert_undisturbed(again: Trained, whole: Trained) -> None:
    assert_equal(again.weights, whole.weights)
    assert_same(again.optimizer, whole.optimizer)
    assert_same(again.method, whole.method)
    assert logged(again)[-2:] == logged(whole)[-2:]


# -- disks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looksam(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training that nothing disturbed."""
    return as_left(train(tmp_path_factory.mktemp("looksam"), **looksams()))


def looksams(**more: Any) -> dict[str, Any]:
    return settings_of(next(case for case in CASES if case.key == "looksam"), **more)


@pytest.mark.parametrize("what", ["save_file", "json"])
def test_a_full_disk_costs_one_checkpoint(
    what: str, looksam: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the system's, half a file is left nowhere, and the run goes on from before."""
    saves = 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves == 2:
            path = args[1] if what == "save_file" else args[0]
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    if what == "save_file":
        original = checkpoint.save_file
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        original = checkpoint.Path.write_text

        def write_text(self: Path, *args: Any, **kwargs: Any) -> Any:
            ours = self.name.startswith(checkpoint.DESCRIPTION)
            return (full if ours else original)(self, *args, **kwargs)

        monkeypatch.setattr(checkpoint.Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, **looksams())
    monkeypatch.undo()
    left = {path.name for path in (tmp_path / "checkpoint-4").glob("sam_state*")}
    assert left == ({checkpoint.TENSORS} if what == "json" else set()), "space is given back"
    resume = newest_whole(tmp_path)
    assert resume == str(tmp_path / "checkpoint-2")
    assert_undisturbed(as_left(train(tmp_path, resume=resume, **looksams())), looksam)


@pytest.fixture
def bound() -> Iterator[None]:
    """The permissions of folders bind this process, also where it runs as root (on Linux)."""
    if os.geteuid() != 0:
        yield
        return
    libc, head = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    # Twice effective, permitted and inheritable capabilities; what is permitted can come back.
    rights = (ctypes.c_uint32 * 6)()
    assert libc.capget(head, rights) == 0
    _, permitted, inherited, _, more_permitted, more_inherited = rights
    none = (0, permitted, inherited, 0, more_permitted, more_inherited)
    assert libc.capset(head, (ctypes.c_uint32 * 6)(*none)) == 0
    yield
    assert libc.capset(head, rights) == 0


class Locks(TrainerCallback):
    """Takes the right to write into the output folder away after the third update."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            Path(args.output_dir).chmod(0o555)


@pytest.mark.usefixtures("bound")
def test_a_read_only_folder_costs_one_checkpoint(looksam: Trained, tmp_path: Path) -> None:
    """The error names the folder that cannot be made, and the run goes on from before."""
    out = tmp_path / "out"
    with pytest.raises(PermissionError, match=r"out/checkpoint-4'$"):
        train(out, callbacks=[Locks()], **looksams())
    assert [path.name for path in in_folder(out)] == ["checkpoint-2"]
    out.chmod(0o755)
    assert newest_whole(out) == str(out / "checkpoint-2")
    again = as_left(train(out, resume=newest_whole(out), **looksams()))
    assert_undisturbed(again, looksam)


def test_a_state_that_was_saved_twice_is_the_second_one(looksam: Trained, tmp_path: Path) -> None:
    """Whatever an earlier save left in the folder, with more processes or half done."""
    folder = tmp_path / "checkpoint-2"
    (folder / checkpoint.SHARDED).mkdir(parents=True)
    (folder / checkpoint.SHARDED / "shard-00003-model-00001-of-00001.safetensors").write_bytes(b"x")
    (folder / f"{checkpoint.TENSORS}.unfinished").write_bytes(b"half")
    train(tmp_path, **looksams())
    assert not (folder / checkpoint.SHARDED).exists()
    again = train(tmp_path / "again", resume=str(folder), **looksams())
    assert_undisturbed(as_left(again), looksam)


def test_a_state_without_its_tensors_is_refused(looksam: Trained, tmp_path: Path) -> None:
    """Rather than begun anew without a word."""
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(f"{looksam.folder}/checkpoint-2", folder)
    (folder / checkpoint.TENSORS).unlink()
    with pytest.raises(ValueError, match=r"LookSAM in it is broken .*0 of \d+ tensors"):
        train(tmp_path / "on", resume=str(folder), **looksams(max_steps=3))


# -- something changed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, None),
        ({"sam_rho": 0.01}, r"rho=0.05, .* rho=0.01: the state of LookSAM is kept"),
        ({"sam_options": {"k": 3}}, r"k=5, .* k=3: the state of LookSAM is kept"),
        ({"sam": "friendly_sam"}, r"LookSAM, .* FriendlySAM: the saved method state is ignored"),
    ],
)
def test_what_changed_is_said_in_one_line(
    more: dict[str, Any], said: str | None, looksam: Trained, tmp_path: Path, caplog: Any
) -> None:
    caplog.clear()
    resume = f"{looksam.folder}/checkpoint-2"
    trainer = train(tmp_path, resume=resume, **looksams(max_steps=3, **more))
    lines = [r.getMessage() for r in caplog.records if "was saved with" in r.getMessage()]
    assert len(lines) == (said is not None)
    if said is not None:
        assert re.search(said, lines[0])
    kept = trainer._method.state_dict()
    if "sam" not in more:
        assert kept["updates"] == 3, "it went on counting"


@pytest.mark.parametrize(
    ("key", "value"), [("processes", 4), ("torch", "2.9.0"), ("hf_sam", "0.0.1")]
)
def test_other_processes_and_versions_are_said(
    key: str, value: Any, looksam: Trained, tmp_path: Path, caplog: Any
) -> None:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(f"{looksam.folder}/checkpoint-2", folder)
    said = json.loads((folder / checkpoint.DESCRIPTION).read_text())
    now = {"processes": 1, "hf_sam": __version__, "torch": torch.__version__}
    assert said["about"] == now
    said["about"][key] = value
    (folder / checkpoint.DESCRIPTION).write_text(json.dumps(said))
    caplog.clear()
    train(tmp_path / "on", resume=str(folder), **looksams(max_steps=3))
    lines = [r.getMessage() for r in caplog.records if "was saved with" in r.getMessage()]
    (line,) = lines
    assert f"with {key}={value!r}, and training goes on with {key}={now[key]!r}: the s" in line


def test_a_checkpoint_of_ours_is_safetensors_and_json(looksam: Trained) -> None:
    ours = sorted(Path(looksam.folder, "checkpoint-2").rglob("sam_state*"))
    assert [path.name for path in ours] == [checkpoint.DESCRIPTION, checkpoint.TENSORS]
    assert any(bool(t.any()) for t in load_file(ours[1]).values())
