# SPDX-License-Identifier: Apache-2.0
"""The front of house says what is so: workflows, issue forms, the pages beside README."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

import hf_sam
from hf_sam import cli, launch

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [ROOT / f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "method")]
PAGES = [ROOT / f"{name}.md" for name in ("AGENTS", "CODE_OF_CONDUCT", "RELEASE", "SECURITY")]
each = pytest.mark.parametrize


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def commands(text: str) -> list[list[str]]:
    """The words of the commands in a page's blocks or a workflow's steps."""
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def test_the_workflows() -> None:
    assert [p.stem for p in WORKFLOWS] == ["docs", "newest", "oldest", "publish", "tests"]


@each("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_runs_what_there_is(path: Path) -> None:
    """Targets of make, files and extras that exist; rights no wider than needed; an end in time."""
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        uses_only = all("run" not in step for step in job["steps"])
        assert uses_only or job["timeout-minutes"] <= 60
        lines = "\n".join(step.get("run", "") for step in job["steps"])
        for asked in re.findall(r"^make (.+)$", lines, re.M):
            chosen = job["strategy"]["matrix"]["target"] if "matrix" in asked else asked.split()
            assert set(chosen) <= targets()
        for file in re.findall(r"\S+\.(?:py|md|cff)\b", lines):
            assert (ROOT / file).is_file(), file


@each("path", FORMS, ids=lambda p: p.stem)
def test_a_form_asks_for_what_contributing_asks(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    text = path.read_text()
    if path.stem == "bug":
        assert "hf-sam env" in text and "trainer.sam_config" in text and 'sam="none"' in text
        return
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.findall(r"^- \[ \] (?:\*\*(.*?)\*\*|(.*?)$)", contributing, re.M)
    titles = [bold or plain for bold, plain in steps][1:]  # the first one is this form
    (boxes,) = (part for part in form["body"] if part["type"] == "checkboxes")
    labels = [option["label"] for option in boxes["attributes"]["options"]]
    assert len(labels) == len(titles)
    for label, title in zip(labels, titles, strict=True):
        assert label.startswith(title), f"CONTRIBUTING.md says {title!r}"


@each("path", PAGES, ids=lambda p: p.stem)
def test_a_page_names_what_there_is(path: Path) -> None:
    """Its links, files, commands and imports."""
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (ROOT / link).exists(), link
    for file in re.findall(r"`((?:\.?[\w-]+/)+[\w.-]+\.\w+)`", text):
        assert (ROOT / file).exists(), file
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        for words in commands(undented(block)):
            if words[0] == "hf-sam":
                known(words[1:])
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        for module, names in re.findall(r"^from (hf_sam\S*) import (.*)$", block, re.M):
            found = importlib.import_module(module)
            assert all(getattr(found, name.strip()) for name in names.split(","))
    for asked in re.findall(r"`make ([a-z -]+)`", text):
        assert set(asked.split()) <= targets()


def undented(block: str) -> str:
    return "\n".join(line.strip() for line in block.splitlines())


def known(words: list[str]) -> None:
    if words[0] in launch.SCRIPTS:
        return
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            cli._parser().parse_args(words)
        return
    assert cli._parser().parse_args(words).run


def test_agents_are_warned_of_what_fails() -> None:
    """One page; what it calls refused is refused, what it recommends is what README does."""
    text = (ROOT / "AGENTS.md").read_text()
    assert len(text.splitlines()) <= 70
    assert all(
        word in text for word in ("training_step", "first_step", "closure", "ZeRO-3", "GRPO")
    )
    shown = re.search(r"SAMTrainingArguments\((.*?)\)", text)
    assert shown is not None and shown[0] in (ROOT / "README.md").read_text()


def test_the_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= cited.keys()
    assert cited["version"] == hf_sam.__version__
    assert cited["title"].startswith("hf_sam: Sharpness-Aware Minimization")
