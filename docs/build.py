# SPDX-License-Identifier: Apache-2.0
"""The pages of the site that are made from the code, its docstrings and what was measured.

mkdocs runs this file while it builds the site (`make docs`); nothing that it writes is committed.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import yaml

from hf_sam import METHODS, pages
from hf_sam.engine.table import ENGINES

ROOT = Path(__file__).parent.parent
COPIES = {
    "glue.md": "glue_scripts/README.md",
    "images.md": "vision_scripts/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "evidence/cost.md": "benchmarks/README.md",
    "evidence/glue.md": "benchmarks/EVIDENCE.md",
    "evidence/cifar10.md": "benchmarks/CIFAR10.md",
    "evidence/matrix.md": "tests/MATRIX.md",
}
"""Pages of the site that are files of the repository."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


def main() -> None:
    """Write all pages."""
    for page, source in COPIES.items():
        write(page, adopted(page, source))
    write("arguments.md", pages.arguments_markdown())
    write("engines.md", (ROOT / "docs/engines.md").read_text() + "\n".join(capabilities()))
    write("methods/index.md", methods_index())
    write("papers.md", papers())
    for key in METHODS:
        write(f"methods/{key}.md", method_page(key))


def write(page: str, text: str) -> None:
    """Write a page of the site."""
    with mkdocs_gen_files.open(page, "w") as file:
        file.write(text)


# -- files of the repository ------------------------------------------------------------------


def adopted(page: str, source: str) -> str:
    """Return a file of the repository whose links lead to pages of the site.

    Pictures travel along; a link to a file that is no page becomes the file's name.
    """
    here = (ROOT / source).parent
    homes = {ROOT / file: name for name, file in COPIES.items()}
    up = "../" * page.count("/")

    def moved(match: re.Match[str]) -> str:
        picture, label, target, anchor = match.groups()
        path = (here / target).resolve()
        if picture:
            name = f"pictures/{path.name}"
            with mkdocs_gen_files.open(name, "wb") as file:
                file.write(path.read_bytes())
            return f"![{label}]({up}{name})"
        if path in homes:
            return f"[{label}]({up}{homes[path]}{anchor or ''})"
        return f"`{path.relative_to(ROOT)}`"

    return LINK.sub(moved, (ROOT / source).read_text(encoding="utf-8"))


# -- methods ----------------------------------------------------------------------------------


def methods_index() -> str:
    """Return the table of methods that the repository holds, linked to their pages."""
    text = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
    for key in METHODS:
        text = text.replace(f"| `{key}` |", f"| [`{key}`]({key}.md) |")
    return text


def method_page(key: str) -> str:
    """Return a method's page: what its docstring says, how to choose it, what was measured."""
    kind = METHODS[key]
    page, options = pages.page_of(kind), pages.options_of(kind)
    parts = [f"# `{key}`", f"**{pages.escape(page.title)}**", pages.body_markdown(page.body)]
    if options:
        parts += ["## Options", pages.options_markdown(page, options)]
    parts += ["## Use", f"```python\n{pages.usage(key, options)}\n```", "## Measured here"]
    parts += list(measured(key))
    return "\n\n".join(parts) + "\n"


def measured(key: str) -> Iterator[str]:
    """Yield what the results say about the cost of a method and its scores."""
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    tables = list(costs(text, key))
    if not tables:
        yield "Its time and memory have not been measured yet."
    for what, table in tables:
        yield f"Time and memory beside `none`, {what} ([how](../evidence/cost.md)):"
        yield table
    scored = sorted(set(scores(key)))
    if scored:
        yield "It was compared with `none` in [these runs](../evidence/glue.md): " + ", ".join(
            f"`{name}`" for name in scored
        )


def costs(text: str, key: str) -> Iterator[tuple[str, str]]:
    """Yield what was measured, and the rows of a method, from each table of costs."""
    for part in text.split("\n## What an update costs: ")[1:]:
        what, _, rest = part.partition("\n")
        lines = rest.splitlines()
        head = next(i for i, line in enumerate(lines) if line.startswith("| method | time |"))
        own = [line for line in lines[head:] if re.match(rf"\| `{key}(:[^`]*)?` ", line)]
        if own:
            yield what, "\n".join([*lines[head : head + 2], *own])


def scores(key: str) -> Iterator[str]:
    """Yield the names of evidence rows in which a method was run."""
    for path in (ROOT / "benchmarks/results").glob("evidence-*.json"):
        for setting in json.loads(path.read_text(encoding="utf-8"))["settings"]:
            for line in setting["lines"]:
                if re.match(rf"{key}(:|$)", line["method"]) and key != "none":
                    yield f"{path.stem.removeprefix('evidence-')}: {line['method']}"


# -- papers -----------------------------------------------------------------------------------


def papers() -> str:
    """Return the index of papers: what each proposes, its key, and its settings to copy."""
    known = yaml.safe_load((ROOT / "docs/papers.yaml").read_text(encoding="utf-8"))
    parts = [
        "# Papers and their settings",
        "What each paper proposes, its key here, and the settings that its authors, or a study "
        "that is named, used. Radii do not carry over from images to pretrained text models: see "
        "[Which method, which radius, when not](choosing.md).",
    ]
    for key, kind in METHODS.items():
        if key != "none":
            parts += paper(key, kind.paper, known.get(key, {}))
    return "\n\n".join(parts) + "\n"


def paper(key: str, source: str, entry: dict[str, Any]) -> Iterator[str]:
    """Yield the paragraphs of one paper."""
    yield f"## {pages.page_of(METHODS[key]).title}"
    yield f"{entry.get('proposes', '')} [`{key}`](methods/{key}.md).".lstrip()
    for setting in entry.get("settings", ()):
        given = ", ".join(f"{name}={value!r}" for name, value in setting["args"].items())
        call = textwrap.fill(
            f'SAMTrainingArguments("out", {given})',
            90,
            subsequent_indent="    ",
            break_long_words=False,
        )
        yield f"{setting['for'][:1].upper()}{setting['for'][1:]}; from {setting['from']}:"
        yield f"```python\n{call}\n```"
    if not entry.get("settings"):
        yield f"Settings of {source} are not known to us; the defaults are explained on its page."


# -- engines ----------------------------------------------------------------------------------


def capabilities() -> Iterator[str]:
    """Yield the tables of engines and of methods on them: what the code and its tests say."""
    yield ""
    yield pages.table_markdown(
        ("engine", "methods", "why"), [(row.name, row.methods, row.why) for row in ENGINES]
    )
    found = json.loads((ROOT / "docs/capabilities.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"""
## Which method was tested where

*yes*: every test of that method there passed; *no*: skipped for the reason below; *unknown*:
none of these tests was run. On CPUs, with {versions}. *Kinds of model* counts
[tiny models of every kind](evidence/matrix.md) on which the method trained.
"""
    reasons: dict[str, int] = {}
    heads = kinds_of_model()
    rows = [
        (
            f"[`{key}`](methods/{key}.md)",
            *(numbered(cell, reasons) for cell in found["cells"].get(key, {}).values()),
            heads(key),
        )
        for key in METHODS
        if key in found["cells"]
    ]
    yield pages.table_markdown(("method", *found["columns"], "kinds of model"), rows)
    yield ""
    yield from (f"{number}. {reason}" for reason, number in reasons.items())
    yield ""


def numbered(cell: str, reasons: dict[str, int]) -> str:
    """Return a cell in which a reason is a number."""
    if not cell.startswith("no: "):
        return cell
    return f"no ({reasons.setdefault(cell.removeprefix('no: '), len(reasons) + 1)})"


def kinds_of_model() -> Callable[[str], str]:
    """Return a function that says on how many kinds of model a method trained."""
    text = (ROOT / "tests/MATRIX.md").read_text(encoding="utf-8")
    rows = [line.split("|")[-2] for line in text.splitlines() if re.search(r"\d+ trained", line)]

    def count(key: str) -> str:
        refused = sum(bool(re.search(rf"(refused|said): {key}\b", row)) for row in rows)
        return f"{len(rows) - refused} of {len(rows)}"

    return count


main()
