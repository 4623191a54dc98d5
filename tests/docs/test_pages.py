# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is true: its code compiles and imports, its commands parse."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_sam import METHODS, SAMTrainingArguments, cli, launch
from hf_sam.arguments import build_method

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PAPERS = yaml.safe_load((ROOT / "docs/papers.yaml").read_text(encoding="utf-8"))
SETTINGS = [
    pytest.param(setting["args"], id=f"{key}-{i}")
    for key in METHODS
    for i, setting in enumerate(PAPERS.get(key, {}).get("settings", ()))
]
OUTSIDE = {"torch", "transformers", "peft", "trl"}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command on a page."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_compiles_and_what_it_imports_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.split(".")[0] in OUTSIDE:
                    continue
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert getattr(module, name.name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.M)
        elif words[0] == "hf-sam" and words[1] in launch.SCRIPTS:
            assert launch.path_of(words[1]).is_file()  # test_readme.py runs such commands
        elif words[0] == "hf-sam":
            assert cli._parser().parse_args(words[1:]).run
        else:
            assert words[0] in ("accelerate", "pip", "python", "git")
        for word in words:
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:examples|benchmarks|tests|accelerate_configs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("args", SETTINGS)
def test_settings_of_papers_are_arguments(args: dict[str, Any], tmp_path: Path) -> None:
    args = {k: str(v) if k == "sam_rho" else v for k, v in args.items()}
    method = build_method(SAMTrainingArguments(str(tmp_path), use_cpu=True, **args))
    assert args["sam"] in METHODS
    assert method is not None


def test_papers_are_of_methods() -> None:
    assert not set(METHODS) - {"none"} - set(PAPERS), "docs/papers.yaml lacks a method"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs_gen_files", reason="needs pip install 'hf-sam[docs]'")
    pytest.importorskip("mkdocs_jupyter", reason="needs pip install 'hf-sam[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "methods/sam/index.html").is_file()
