# SPDX-License-Identifier: Apache-2.0
"""`hf-sam`: its pages are the docstrings and fields, and no method lacks a part of its page."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sam import METHODS, SAMTrainingArguments, cli, pages
from hf_sam.engine.table import ENGINES

SECTIONS = (
    "Update::",
    "Cost:",
    "Defaults:",
    "Deviations",
    "When it does not help:",
    "Attributes:",
)
every_key = pytest.mark.parametrize("key", METHODS)
every_sam = pytest.mark.parametrize("key", [key for key in METHODS if key != "none"])


def run(*argv: str) -> int:
    return cli.main(list(argv))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("methods", "explain", "docs", "env"))
    with pytest.raises(SystemExit, match="0"):
        run("--help")


def test_it_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hf_sam.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()[:7]) == (0, "hf-sam ")


def test_the_table_has_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    printed = capsys.readouterr().out
    first = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert set(METHODS) <= first
    assert all(column in printed for column in pages.COLUMNS)


def test_the_rows_are_the_classes() -> None:
    rows = {row[0]: row[1:] for row in pages.rows()}
    assert rows.keys() == METHODS.keys()
    for key, kind in METHODS.items():
        state = "saved" if kind().keeps_state else "none"
        assert rows[key] == (kind.paper, kind.passes, kind.memory, state, kind.use)
    assert {"looksam", "friendly_sam"} <= {key for key, row in rows.items() if row[3] == "saved"}


@every_key
def test_explain_is_the_docstring_and_the_fields(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", key) == 0
    printed = capsys.readouterr().out
    kind = METHODS[key]
    documented = inspect.getdoc(kind).partition("\nAttributes:")[0]
    for line in documented.splitlines():
        assert line.strip() in printed
    for f in pages.options_of(kind):
        assert f"  {pages.flag(f)} = {pages.default_of(f)}" in printed
        assert f"Tuned over {pages.tried(f)}." in " ".join(printed.split()) or not pages.tried(f)


@every_key
def test_the_use_that_a_page_shows_builds_the_defaults(key: str) -> None:
    text = pages.usage(key, pages.options_of(METHODS[key]))
    args = eval(text.replace('("out"', '("out", use_cpu=True'), {**globals()})
    from hf_sam.arguments import build_method

    assert isinstance(args, SAMTrainingArguments)
    assert build_method(args).describe() == METHODS[key]().describe()


def test_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "lookasm") == 2
    assert "did you mean 'looksam'" in capsys.readouterr().err


def test_docs(tmp_path: Path) -> None:
    assert run("docs", "--output", str(tmp_path / "new" / "docs")) == 0
    methods, arguments, engines = (
        (tmp_path / "new" / "docs" / name).read_text()
        for name in ("methods.md", "arguments.md", "engines.md")
    )
    for key, kind in METHODS.items():
        assert f"\n## {key}\n" in methods and f"[`{key}`](#{key})" in methods
        assert all(f"| `{pages.flag(f)}` |" in methods for f in pages.options_of(kind))
    assert all(f"| `{f.name}` |" in arguments for f in dataclasses.fields(cli_arguments()))
    assert "`random:piecewise:P_START:P_END:SWITCH`" in arguments
    assert all(
        pages.escape(row.name) in engines and pages.escape(row.why) in engines for row in ENGINES
    )


def cli_arguments() -> type:
    from hf_sam import SAMArguments

    return SAMArguments


def test_tables_are_well_formed(tmp_path: Path) -> None:
    """Every row has its heading's number of bars, and every code fence is closed."""
    cli.write_docs(tmp_path)
    for page in tmp_path.iterdir():
        text = page.read_text()
        assert text.count("```") % 2 == 0
        width = 0
        for line in text.splitlines():
            bars = line.replace(r"\|", "").count("|") if line.startswith("|") else 0
            assert bars in (0, width) or width == 0, line
            width = bars


def test_markdown() -> None:
    assert pages.escape("a *b* |c| <d> `|e| *f*`") == r"a \*b\* \|c\| &lt;d> `\|e\| *f*`"
    body = "Update::\n\n    u = x\n\n    v = y\n\nCost: two.\n\nPlain text: with a colon late on."
    assert pages.body_markdown(body).split("\n\n") == [
        "**Update.**",
        "```text\nu = x",
        "v = y\n```",
        "**Cost.** Two.",
        "Plain text: with a colon late on.",
    ]


@every_sam
def test_a_page_has_its_sections_in_order(key: str) -> None:
    doc = inspect.getdoc(METHODS[key])
    places = [doc.find(f"\n{section}") for section in SECTIONS]
    assert -1 not in places, SECTIONS[places.index(-1)]
    assert places == sorted(places)


@every_sam
def test_a_page_describes_every_field(key: str) -> None:
    kind = METHODS[key]
    assert set(pages.page_of(kind).attributes) == {f.name for f in dataclasses.fields(kind)}
    assert all(pages.page_of(kind).attributes.values())
    assert all(f.metadata.get("help") for f in dataclasses.fields(kind))
    assert kind.paper and kind.passes and kind.memory and kind.use


@every_sam
def test_a_page_names_what_its_own_fields_hold(key: str) -> None:
    """Every number that the class itself sets stands in its paragraph on defaults."""
    kind = METHODS[key]
    paragraph = inspect.getdoc(kind).partition("\nDefaults:")[2].split("\n\n")[0]
    for f in pages.options_of(kind):
        if f.name in kind.__annotations__:
            default = pages.default_of(f)
            if isinstance(default, (int, float)):
                assert f"{default:g}" in paragraph, f"{f.name} = {default}"
