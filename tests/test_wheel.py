# SPDX-License-Identifier: Apache-2.0
"""The package as it is published: built, installed into a fresh environment, run from anywhere.

The environment sees this one's libraries, so that nothing is downloaded, but neither the checkout
nor its editable installation.
"""

from __future__ import annotations

import importlib.util
import json
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

import hf_sam
from tests.glue.conftest import pairs, tiny_model
from tests.vision.conftest import table

ROOT = Path(__file__).parents[1]
ROOMS = ("accelerate_configs", "glue_scripts", "shared_scripts", "vision_scripts")
pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.CompletedProcess]


def succeed(*words: object, **options: object) -> subprocess.CompletedProcess:
    """Run a command; show what it said if it fails."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def start(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Function that runs a program of the fresh environment, from an empty folder."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place / "env", symlinks=True)
    python = place / "env" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    succeed(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    (packages,) = (place / "env" / "lib").glob("*/site-packages")
    # Only the folders: their own .pth files, and with them the checkout, are not read.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    hidden = ("PYTHONPATH", "HF_SAM_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def run(program: str, *words: object, folder: Path) -> subprocess.CompletedProcess:
        return succeed(place / "env" / "bin" / program, *words, cwd=folder, env=environment)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def glue(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of `hf-sam glue` that train on a few sentences."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "mrpc").mkdir()
    for split in ("train", "validation"):
        Dataset.from_dict(pairs(16)).to_parquet(folder / "mrpc" / f"{split}.parquet")
    flags = ["--model_name_or_path", str(model), "--data_dir", str(folder), "--task_name", "mrpc"]
    return [*flags, "--do_train", "--do_eval", "--use_cpu", "--max_steps", "2", "--sam_rho", "0.01"]


def test_nothing_but_the_package_is_installed(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    information = f"hf_sam-{hf_sam.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"hf_sam", information}
    assert {"hf_sam/py.typed", f"{information}/licenses/LICENSE"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "tests" in name]
    for room in ROOMS:
        files = [p for p in (ROOT / room).rglob("*") if p.is_file() and "__pycache__" not in str(p)]
        assert files
        for path in files:
            assert f"hf_sam/scripts/{path.relative_to(ROOT).as_posix()}" in names


def test_the_sdist_can_be_worked_on(built: Path) -> None:
    """It has the tests and what `make` reads, and no build product."""
    (source,) = built.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(source).getnames()}
    assert {"Makefile", "constraints.txt", "tests/cases.py", "CITATION.cff"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


@pytest.mark.skipif(importlib.util.find_spec("twine") is None, reason="twine is not installed")
def test_twine_is_content(built: Path) -> None:
    succeed(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_installed_package_is_the_one_that_runs(start: Start, tmp_path: Path) -> None:
    said = start("hf-sam", "env", folder=tmp_path).stdout
    assert f"- hf-sam: {hf_sam.__version__} (installed)" in said
    where = start("python", "-c", "import hf_sam; print(hf_sam.__file__)", folder=tmp_path).stdout
    assert str(ROOT) not in where and "site-packages" in where
    code = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    assert start("python", "-c", code.format(ROOMS), folder=tmp_path).stdout.strip() == "[]"


def test_the_demo(start: Start, tmp_path: Path) -> None:
    words = ("--seeds", "1", "--epochs", "2", "--methods", "none", "sam")
    assert "sam beats none with" in start("hf-sam", "demo", *words, folder=tmp_path).stdout
    for folder in ("demo_output", "demo_output/images"):
        found = json.loads((tmp_path / folder / "results.json").read_text())
        assert found["methods"] == ["none", "sam"] and found["setting"]["epochs"] == 2
        assert (tmp_path / folder / "demo.png").stat().st_size > 10_000


def test_glue_in_two_processes(start: Start, glue: list[str], tmp_path: Path) -> None:
    words = ("--accelerate_config", "ddp_cpu", "--num_processes", "2", "--output_dir", "out")
    start("hf-sam", "glue", *words, *glue, folder=tmp_path)
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found["sam"]["sam"] == "sam" and found["eval_samples"] == 16
    assert found["command"].startswith("hf-sam glue --output_dir out")


def test_compare(start: Start, glue: list[str], tmp_path: Path) -> None:
    glue = glue[: glue.index("--sam_rho")]
    words = ("--methods", "none,sam", "--seeds", "1", "--", "glue", *glue)
    start("hf-sam", "compare", *words, folder=tmp_path)
    found = json.loads((tmp_path / "outputs" / "compare" / "results.json").read_text())
    assert not found["missing"] and (tmp_path / "outputs" / "compare" / "report.html").is_file()


def test_images(start: Start, tmp_path: Path) -> None:
    """Also a model of our own, which the script's own package registers."""
    table(12).to_parquet(tmp_path / "train.parquet")
    words = ("--config_name", "cifar_resnet", "--train_file", "train.parquet", "--max_steps", "2")
    words += ("--use_cpu", "--do_train", "--output_dir", "out", "--image_size", "8")
    start("hf-sam", "images", *words, folder=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()
