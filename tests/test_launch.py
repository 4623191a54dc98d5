# SPDX-License-Identifier: Apache-2.0
"""`hf-sam glue | images | demo | env`, from a checkout; `test_wheel.py` installs the package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hf_sam
from hf_sam import cli, environment, launch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What would have been run as `python FILE WORDS`."""
    found: list[tuple[str, list[str]]] = []

    def run_path(path: str, run_name: str) -> None:
        assert run_name == "__main__"
        found.append((str(Path(path).relative_to(ROOT)), sys.argv[1:]))

    monkeypatch.setattr(launch.runpy, "run_path", run_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    return found


def test_arguments_are_the_scripts_own(ran: list) -> None:
    """In their order, those that `hf-sam` itself would understand included."""
    words = ["file.yaml", "--task_name", "mrpc", "--do_train", "--version", "--num", "2"]
    assert cli.main(["glue", *words]) == 0
    assert cli.main(["images", "--sam_options", '{"gamma": 0.5}']) == 0
    assert ran == [
        ("glue_scripts/run_glue.py", words),
        ("vision_scripts/run_image_classification.py", ["--sam_options", '{"gamma": 0.5}']),
    ]


def test_the_demos(ran: list) -> None:
    """One that is named, or both, whose results stay apart."""
    assert cli.main(["demo", "--seeds", "1"]) == 0
    assert cli.main(["demo", "--output_dir=out", "--seeds", "1", "2"]) == 0
    assert cli.main(["demo", "images", "--output_dir", "out"]) == 0
    assert ran == [
        ("glue_scripts/demo.py", ["--seeds", "1", "--output_dir", "demo_output"]),
        ("vision_scripts/demo.py", ["--seeds", "1", "--output_dir", "demo_output/images"]),
        ("glue_scripts/demo.py", ["--seeds", "1", "2", "--output_dir", "out"]),
        ("vision_scripts/demo.py", ["--seeds", "1", "2", "--output_dir", "out/images"]),
        ("vision_scripts/demo.py", ["--output_dir", "out"]),
    ]


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerate gets: the file, the launch options, the script and the script's words."""
    from accelerate.commands import launch as theirs

    found = []
    monkeypatch.setattr(theirs, "launch_command", found.append)
    words = ["--accelerate_config", "zero2", "--use_cpu", "--num_processes=4", "--seed", "3"]
    assert cli.main(["glue", *words]) == 0
    asked = found[0]
    assert Path(asked.config_file) == ROOT / "accelerate_configs" / "zero2.yaml"
    assert asked.num_processes == 4
    assert Path(asked.training_script) == ROOT / "glue_scripts" / "run_glue.py"
    assert asked.training_script_args == ["--use_cpu", "--seed", "3"]


def test_no_launch_option_is_an_argument_of_a_script() -> None:
    """Or `hf-sam glue` would take it away from the script."""
    from glue_scripts import arguments as glue
    from vision_scripts import arguments as vision

    kinds = (glue.ModelArguments, glue.DataTrainingArguments, hf_sam.SAMTrainingArguments)
    kinds += (vision.ModelArguments, vision.DataTrainingArguments)
    names = {f"--{name}" for kind in kinds for name in kind.__dataclass_fields__}
    assert not names & {*launch.LAUNCH, "--accelerate_config"}


def test_every_configuration_has_its_name(tmp_path: Path) -> None:
    assert set(launch.configs()) == {"ddp", "ddp_cpu", "fsdp2", "zero1", "zero2", "zero3"}
    assert all(yaml.safe_load(path.read_text()) for path in launch.configs().values())
    (tmp_path / "mine.yaml").touch()
    assert launch.config_file(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["glue", "--accelerate_config", "zero"], "one of ddp, ddp_cpu, fsdp2, zero1, zero2"),
        (["glue", "--accelerate_config", "zero4"], "did you mean 'zero"),
        (["images", "--num_processes", "2"], "--num_processes=2 needs --accelerate_config"),
    ],
)
def test_a_launch_that_cannot_be(
    words: list[str], said: str, ran: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2 and not ran
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", launch.SCRIPTS)
def test_a_missing_library_is_named_at_once(
    name: str, ran: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(launch, "find_spec", lambda m: None if m == "sklearn" else find(m))
    assert cli.main([name]) == 2 and not ran
    extra = "vision" if name == "images" else "glue"
    assert f"{name} needs sklearn: pip install 'hf-sam[{extra}]'" in capsys.readouterr().err


def test_help_lists_the_launch_and_the_scripts_arguments(tmp_path: Path) -> None:
    words = ["-m", "hf_sam.cli", "glue", "--help"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(f in done.stdout for f in ("--accelerate_config", "--sam_rho", "--task_name"))


def test_a_result_says_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.spoken("glue_scripts/run_glue.py") == ["python", "glue_scripts/run_glue.py"]
    monkeypatch.setattr(launch, "INSIDE", ROOT)  # an installed package has this folder
    assert launch.spoken("glue_scripts/run_glue.py") == ["hf-sam", "glue"]
    assert launch.spoken("glue_scripts/demo.py") == ["python", "glue_scripts/demo.py"]


def test_env(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions as they are installed, what is missing, the devices, and what the shell sets."""
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(environment, "LIBRARIES", ("torch", "transformers", "no-such-library"))
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"- hf-sam: {hf_sam.__version__} (a checkout)",
        f"- transformers: {metadata.version('transformers')}",
        f"- torch: {metadata.version('torch')}",
        "- no-such-library: not installed",
        "- NCCL_DEBUG: INFO",
    ):
        assert line in printed.splitlines()
    assert "- accelerator: " in printed and "secret" not in printed
