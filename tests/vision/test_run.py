# SPDX-License-Identifier: Apache-2.0
"""run_image_classification.py from the command line's words to the files that it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from shared_scripts.arguments import InputError
from shared_scripts.running import command_line
from tests.vision.conftest import picture, png, table
from vision_scripts.run_image_classification import main

SCRIPT = Path(__file__).parents[2] / "vision_scripts" / "run_image_classification.py"
Flags = Callable[..., list[str]]


def results(folder: Path, stage: str = "all") -> dict[str, Any]:
    return json.loads((folder / f"{stage}_results.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


def test_every_stage_leaves_its_results(flags: Flags, tmp_path: Path) -> None:
    augmented = {"random_crop": 1, "random_flip": True, "cutout": 2, "label_smoothing_factor": 0.1}
    words = flags("--do_train", "--do_eval", sam="esam", sam_options="gamma=0.5", **augmented)
    metrics = main(words)
    joined = results(tmp_path / "out")
    assert (joined["train_samples"], joined["eval_samples"]) == (24, 9)
    assert joined["eval_accuracy"] == metrics["eval_accuracy"]
    assert joined["sam"]["method"]["name"] == "ESAM"
    assert joined["max memory (MB)"] >= joined["train max memory (MB)"] > 50
    assert joined["arguments"]["random_crop"] == 1
    assert joined["command"].startswith("python vision_scripts/run_image_classification.py --")
    assert "hf_sam" in (tmp_path / "out" / "README.md").read_text()
    again = {"model_name_or_path": tmp_path / "out", "config_name": None, "config_overrides": None}
    again |= {"output_dir": tmp_path / "again", "label_smoothing_factor": 0.1}
    found = main(flags("--do_eval", **again))
    assert found["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)


def test_sam_learns_and_none_is_plain(flags: Flags, tmp_path: Path) -> None:
    more = {"max_steps": 8, "learning_rate": 0.05, "optim": "sgd"}
    for name, values in {
        "none": {"sam": "none"},
        "zero": {"sam_rho": "0.0"},
        "sam": {"sam_rho": "0.1"},
    }.items():
        found = main(flags("--do_train", "--do_eval", output_dir=tmp_path / name, **more, **values))
    assert found["eval_accuracy"] > 0.6
    none, zero, sam = (weights(tmp_path / name) for name in ("none", "zero", "sam"))
    assert all(torch.equal(none[key], zero[key]) for key in none)
    assert not all(torch.equal(none[key], sam[key]) for key in none)


def test_channels_last_changes_nothing_but_rounding(flags: Flags, tmp_path: Path) -> None:
    """Also resuming from a checkpoint that was written in that format."""
    more = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "random_crop": 1}
    for name, values in {"plain": {}, "last": {"channels_last": True}}.items():
        main(flags("--do_train", output_dir=tmp_path / name, optim="sgd", **more, **values))
    plain, last = weights(tmp_path / "plain"), weights(tmp_path / "last")
    for key in plain:
        torch.testing.assert_close(last[key], plain[key], atol=1e-5, rtol=1e-3)
    checkpoint = tmp_path / "last" / "checkpoint-3"
    again = {"output_dir": tmp_path / "again", "resume_from_checkpoint": checkpoint}
    main(flags("--do_train", optim="sgd", channels_last=True, **again, **more))
    resumed = weights(tmp_path / "again")
    assert all(torch.equal(resumed[key], last[key]) for key in last)


def test_folders_and_grey_images(flags: Flags, image_dir: Path, tmp_path: Path) -> None:
    grey = '{"depths": [1], "hidden_sizes": [4], "num_channels": 1}'
    words = flags("--do_train", "--do_eval", train_dir=image_dir, config_overrides=grey)
    assert main([w for w in words if "validation_file" not in w])["eval_samples"] == 2
    config = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert len(config["image_mean"]) == 1
    assert config["crop_size"] == {"height": 8, "width": 8}


def test_a_truncated_image_stops_before_training(flags: Flags, tmp_path: Path) -> None:
    rows = [{"bytes": png(picture(n)), "path": None} for n in range(6)]
    rows[4]["bytes"] = rows[4]["bytes"][:-30]
    path = tmp_path / "broken.parquet"
    table(6, image=rows, label=[0, 1] * 3).to_parquet(path)
    with pytest.raises(InputError, match=f"{path}, row 5: cannot be read as an image"):
        main(flags("--do_train", train_file=path))


def test_errors_are_one_line(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="--do_predict: this script has only --do_train --do_eval"):
        main(flags("--do_train", "--do_predict"))
    with pytest.raises(InputError, match="--sam_where='nrom' matches no .*did you mean 'norm'"):
        main(flags("--do_train", sam_where="nrom"))
    with pytest.raises(InputError, match="--cutout 8: leaves nothing of images of 8 x 8"):
        main(flags("--do_train", cutout=8))
    patches = flags("--do_train", config_name="vit", config_overrides="patch_size=3")
    with pytest.raises(SystemExit, match="2"):
        command_line(lambda: main(patches), "script.py")
    assert capsys.readouterr().err.startswith("script.py: error: images of 8 x 8 pixels do not fit")


def test_its_own_checkpoint_works_again(
    flags: Flags, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["US", "us", "LABEL_0"]
    table(12, label=[names[n % 3] for n in range(12)]).to_parquet(tmp_path / "train.parquet")
    table(6, label=["us", "US"] * 3).to_parquet(tmp_path / "some.parquet")
    data = {"train_file": tmp_path / "train.parquet", "validation_file": tmp_path / "some.parquet"}
    first = main(flags("--do_train", "--do_eval", max_train_samples=4, **data))
    own = {"model_name_or_path": tmp_path / "out", "config_name": None, "config_overrides": None}
    own |= {"output_dir": tmp_path / "again"} | data
    again = main(flags("--do_eval", **own))
    assert again["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)
    main(flags("--do_train", max_train_samples=4, **own))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["LABEL_0", "US", "us"]
    assert "head" not in caplog.text


def test_the_arguments_of_transformers_own_test(
    image_dir: Path, flags: Flags, tmp_path: Path
) -> None:
    words = flags("--do_train", "--do_eval", "--trust_remote_code", train_dir="x")
    words = [w for w in words if not w.startswith("--train_dir")]
    words += ["--dataset_name", str(image_dir), "--label_column_name", "label"]
    words += "--remove_unused_columns False --dataloader_num_workers 16 --seed 42".split()
    words += "--metric_for_best_model accuracy --train_val_split 0.25".split()
    metrics = main([
        *words,
        "--per_device_eval_batch_size",
        "1",
        "--cache_dir",
        str(tmp_path / "c"),
    ])
    assert (metrics["train_samples"], metrics["eval_samples"]) == (9, 3)
    for stage, names in {
        "train": "epoch train_loss train_runtime train_samples_per_second",
        "eval": "eval_accuracy eval_loss eval_runtime eval_samples_per_second",
        "all": "train_steps_per_second eval_steps_per_second train_samples eval_samples",
    }.items():
        assert set(names.split()) <= results(tmp_path / "out", stage).keys()
    files = "README.md config.json model.safetensors preprocessor_config.json trainer_state.json"
    assert all((tmp_path / "out" / name).is_file() for name in files.split())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- image-classification\n- vision\n- hf_sam" in card


@pytest.mark.slow
def test_the_file_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--config_name=vit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("run_image_classification.py: error: no data: give --train_dir")
    assert "Traceback" not in done.stderr
