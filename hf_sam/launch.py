# SPDX-License-Identifier: Apache-2.0
"""`hf-sam glue | images | demo`: the scripts, from any folder, in one process or in several.

The scripts' folders stand at the top of a checkout; in an installed package they stand in
`hf_sam/scripts`. A script is run as the file that it is, so that both ways do the same.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parent
INSIDE = PACKAGE / "scripts"
LAUNCH = {
    "--num_processes": "how many processes, on all machines together",
    "--num_machines": "how many machines",
    "--machine_rank": "which of them this is",
    "--main_process_ip": "address of the first machine",
    "--main_process_port": "port there",
    "--gpu_ids": "which GPUs of this machine to use, as in 0,1",
}
"""Arguments of `accelerate launch` that are not the script's."""


@dataclass(frozen=True)
class Script:
    """A script that a command runs.

    Attributes:
        files: of the scripts, in the order in which they run.
        about: what the command does.
        needs: modules that are not installed with hf_sam alone.
        extra: of hf_sam, which installs them.
    """

    files: tuple[str, ...]
    about: str
    needs: tuple[str, ...]
    extra: str


SCRIPTS = {
    "glue": Script(
        ("glue_scripts/run_glue.py",),
        "fine-tune a text classifier on GLUE or on your own files",
        ("datasets", "evaluate", "scipy", "sklearn"),
        "glue",
    ),
    "images": Script(
        ("vision_scripts/run_image_classification.py",),
        "train an image classifier on a dataset or on your own images",
        ("datasets", "evaluate", "PIL", "sklearn"),
        "vision",
    ),
    "demo": Script(
        ("glue_scripts/demo.py", "vision_scripts/demo.py"),
        "a small BERT and a small ResNet with and without SAM: tables and pictures",
        ("matplotlib", "sklearn"),
        "glue",
    ),
}


def home() -> Path:
    """Return the folder in which the scripts' folders stand."""
    return INSIDE if INSIDE.is_dir() else PACKAGE.parent


def path_of(name: str) -> Path:
    """Return the file that `hf-sam NAME` runs."""
    return home() / SCRIPTS[name].files[0]


def spoken(file: str) -> list[str]:
    """Return the words that run one of the scripts' files again."""
    names = [name for name, script in SCRIPTS.items() if script.files == (file,)]
    return ["hf-sam", *names] if names and INSIDE.is_dir() else ["python", file]


def configs() -> dict[str, Path]:
    """Return the files for `--accelerate_config` by name."""
    return {path.stem: path for path in sorted((home() / "accelerate_configs").glob("*.yaml"))}


def start(name: str, words: Sequence[str]) -> int:
    """Run a script; what follows its name is the script's, but for how it is launched.

    Args:
        name: a key of `SCRIPTS`.
        words: of the command line, after the name.

    Raises:
        ValueError: a library is missing, or the launch cannot be as it is asked for.
        SystemExit: the script ends with an error.
    """
    script = SCRIPTS[name]
    if name == "demo":
        return _demos(script, words)
    parser = _parser(name, script)
    asked, rest = parser.parse_known_args(words)
    if {"-h", "--help"} & set(words):
        print(parser.format_help())
    else:
        _require(name, script)
    chosen = {flag: getattr(asked, flag.removeprefix("--")) for flag in LAUNCH}
    given = [f"{flag}={value}" for flag, value in chosen.items() if value is not None]
    if asked.accelerate_config is None:
        if given:
            raise ValueError(f"{given[0]} needs --accelerate_config, one of {', '.join(configs())}")
        return _run(path_of(name), rest)
    return _launch(config_file(asked.accelerate_config), given, path_of(name), rest)


def _parser(name: str, script: Script) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"hf-sam {name}",
        usage="%(prog)s [--accelerate_config CONFIG [launch options]] [ARGUMENTS]",
        description=f"{script.about[0].upper()}{script.about[1:]}. The arguments follow below.",
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--accelerate_config",
        metavar="CONFIG",
        help=f"one of {', '.join(configs())}, or a file that `accelerate config` wrote",
    )
    for flag, text in LAUNCH.items():
        group.add_argument(flag, help=text, metavar="IP" if flag.endswith("ip") else "N")
    return parser


def _require(name: str, script: Script) -> None:
    missing = [module for module in script.needs if find_spec(module) is None]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: pip install 'hf-sam[{script.extra}]'")


def config_file(name: str) -> Path:
    """Return the file of one of our configurations, or the user's own.

    Raises:
        ValueError: there is no such file.
    """
    from .parts.base import nearest  # loads torch

    known = configs()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ValueError(
            f"--accelerate_config {name}: no such file; give a path, or one of "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    return path


def _launch(config: Path, given: Sequence[str], script: Path, words: Sequence[str]) -> int:
    """Start the script's processes, as `accelerate launch` does."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    parser = launch_command_parser()
    launch_command(parser.parse_args(["--config_file", str(config), *given, str(script), *words]))
    return 0


def _run(script: Path, words: Sequence[str]) -> int:
    """Run a file in this process, as `python FILE` does."""
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _demos(script: Script, words: Sequence[str]) -> int:
    """Run the demo that is named, or one after the other."""
    text, images = (home() / file for file in script.files)
    parser = argparse.ArgumentParser(
        prog="hf-sam demo",
        usage="%(prog)s [glue | images] [ARGUMENTS]",
        description=f"{script.about[0].upper()}{script.about[1:]}. "
        "`hf-sam demo glue --help` and `hf-sam demo images --help` list the arguments.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("demo_output"),
        help="for numbers and pictures; those of the images go into its folder images",
    )
    if words[:1] in (["glue"], ["images"]):
        _require("demo", script)
        return _run(text if words[0] == "glue" else images, words[1:])
    asked, rest = parser.parse_known_args(words)
    if {"-h", "--help"} & set(words):
        print(parser.format_help(), end="")
        return 0
    _require("demo", script)
    _run(text, [*rest, "--output_dir", str(asked.output_dir)])
    return _run(images, [*rest, "--output_dir", str(asked.output_dir / "images")])
