# SPDX-License-Identifier: Apache-2.0
"""The digits demo: its data are sound, and it leaves a table, numbers and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vision_scripts import demo


def test_the_data_of_a_seed() -> None:
    problem = demo.Problem(demo.Setting(label_noise=0.25), 1)
    images, labels = demo.read_digits()
    assert images.shape == (1797, 1, 8, 8) and images.max() == 255
    assert (len(problem.train), len(problem.validation)) == (900, 897)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels)}  # noqa: B905
    right = torch.tensor([known[image.numpy().tobytes()] for image in problem.train.images])
    assert int((problem.train.labels != right).sum()) == 225
    assert problem.fixed_wrong.tolist() == (problem.train.labels != right)[:512].tolist()
    again = demo.Problem(demo.Setting(label_noise=0.25), 1)
    assert torch.equal(again.train.labels, problem.train.labels)
    assert not torch.equal(demo.Problem(demo.Setting(), 2).train.images, problem.train.images)


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "0"],
        ["--label_noise", "1.5"],
        ["--sam_rho", "-0.1"],
        ["--sam_rho", "nan"],
        ["--seeds", "1", "1"],
    ],
)
def test_what_a_demo_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(words)
    assert f"error: {' '.join(words)}:" in capsys.readouterr().err


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--seeds", "1", "--epochs", "2", "--output_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["none", "sam"]
    mean = results["summary"]["sam"]["validation_accuracy"]["mean"]
    assert f"{mean:.1f}" in shown and mean > 10
    assert (tmp_path / "demo.png").stat().st_size > 10_000
