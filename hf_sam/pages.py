# SPDX-License-Identifier: Apache-2.0
"""The pages of methods, arguments and engines, which are made from docstrings and fields."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from .prices import COLUMNS, by_price, rows

if TYPE_CHECKING:
    from .methods import Method

GENERATED = "<!-- written by `hf-sam docs`: change the docstrings instead -->"
TABLE_GENERATED = "<!-- written by `python -m hf_sam.pages > docs/methods/index.md` -->"
HEADINGS = ("Update", "Cost", "Defaults", "Deviations", "When it does not help")
ATTRIBUTES = "\nAttributes:\n"
EXAMPLE = "\nExample:\n"


# -- reading docstrings -----------------------------------------------------------------------


@dataclass
class Page:
    """The sections of a method's docstring.

    Attributes:
        title: the first line.
        body: the text from there up to the attributes.
        attributes: the description of each field.
    """

    title: str
    body: str
    attributes: dict[str, str]


def page_of(kind: type) -> Page:
    """Return the sections of a class's docstring; its bases describe inherited fields."""
    title, _, rest = inspect.getdoc(kind).partition("\n")  # type: ignore[union-attr]
    attributes: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        attributes.update(_attributes(inspect.cleandoc(base.__doc__ or "")))
    return Page(title, rest.partition(ATTRIBUTES)[0].strip("\n"), attributes)


def _attributes(doc: str) -> dict[str, str]:
    """Return the description of each field in a docstring."""
    described: dict[str, str] = {}
    name = ""
    for line in doc.partition(ATTRIBUTES)[2].partition(EXAMPLE)[0].splitlines():
        if line.startswith("    ") and line[4:5] not in ("", " "):
            name, _, text = line.strip().partition(": ")
            described[name] = text
        elif line.strip():  # a continuation line, which is indented further
            described[name] += " " + line.strip()
    return described


def options_of(kind: type) -> list[Field[Any]]:
    """Return the fields that `sam_rho` and `sam_options` reach, the shared ones last."""
    return sorted(
        (f for f in fields(kind) if not f.metadata.get("python")), key=lambda f: bool(f.kw_only)
    )


def default_of(f: Field[Any]) -> Any:
    """Return a field's default."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return f.default


def allowed(f: Field[Any]) -> str:
    """Return, in words, the values that a field's metadata allows."""
    rules = f.metadata
    choices = ", ".join(map(str, rules.get("choices", ())))
    if "low" not in rules:
        return f"one of {choices}" if choices else ""
    words = f"from {rules['low']:g}" + (f" to {rules['high']:g}" if "high" in rules else "")
    words += ", a whole number" if rules.get("whole") else ""
    return f"{choices}, or {words}" if choices else words


def tried(f: Field[Any]) -> str:
    """Return the values of a field that `hf-sam tune` tries, if any."""
    from .tune.space import grid

    return ", ".join(grid(f))


def known_method(key: str) -> type[Method]:
    """Return `METHODS[key]`.

    Raises:
        ValueError: no such key.
    """
    from .methods import METHODS
    from .parts.base import nearest

    if key not in METHODS:
        listed = ", ".join(METHODS)
        raise ValueError(f"{key!r} is not a method; choose from {listed}{nearest(key, METHODS)}")
    return METHODS[key]


def methods_page() -> str:
    """Return the page with the table of methods, which the repository holds as a file."""
    return (
        f"# Methods\n\n{TABLE_GENERATED}\n\nSelect one with `sam=KEY`. *P* is one copy of the "
        "trainable parameters, for LoRA of the adapter; a *pass* is a forward and a backward over "
        "the whole batch. A method's page, with its update, defaults and when it does not help: "
        "`hf-sam explain KEY`. [Which method, which radius, when not](../choosing.md).\n\n"
        + "\n\n".join(
            f"## {name.capitalize()}\n\n"
            + table_markdown(COLUMNS, [(f"`{row[0]}`", *row[1:]) for row in group])
            for name, group in by_price()
        )
        + "\n"
    )


def explain_text(key: str) -> str:
    """Return a method's page as plain text.

    Raises:
        ValueError: no such method.
    """
    kind = known_method(key)
    page, options = page_of(kind), options_of(kind)
    lines = [f"{key}  (hf_sam.{kind.__name__})", "", page.title, "", page.body]
    if options:
        lines += ["", "Options:"]
    for f in options:
        rule = f"  ({allowed(f)})" if allowed(f) else ""
        lines.append(f"  {flag(f)} = {default_of(f)}{rule}")
        indent = " " * 6
        text = page.attributes.get(f.name, "")
        text += f" Tuned over {tried(f)}." if tried(f) else ""
        lines.append(textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent))
    return "\n".join([*lines, "", "Use:", f"  {usage(key, options)}"])


def flag(f: Field[Any]) -> str:
    """Return the name under which a user sets a field."""
    return "sam_rho" if f.name == "rho" else f.name


def usage(key: str, options: Iterable[Field[Any]]) -> str:
    """Return the training arguments that select a method with its own defaults."""
    named = {f.name: default_of(f) for f in options}
    rho = f", sam_rho={named.pop('rho')}" if "rho" in named else ""
    given = f", sam_options={named!r}" if named else ""
    return f'SAMTrainingArguments("out", sam="{key}"{rho}{given})'


# -- as Markdown ------------------------------------------------------------------------------


def methods_markdown() -> str:
    """Return the table of methods and every method's page."""
    from .methods import METHODS

    linked = [(f"[`{row[0]}`](#{row[0]})", *row[1:]) for row in rows()]
    parts = [
        "# Methods",
        GENERATED,
        "P is one copy of the trainable parameters. Select a method with `sam=KEY`.",
        table_markdown(COLUMNS, linked),
    ]
    for key, kind in METHODS.items():
        page, options = page_of(kind), options_of(kind)
        parts += [f"## {key}", f"`hf_sam.{kind.__name__}`: {escape(page.title)}"]
        parts.append(body_markdown(page.body))
        if options:
            parts.append(options_markdown(page, options))
        parts.append(f"```python\n{usage(key, options)}\n```")
    return "\n\n".join(parts) + "\n"


def options_markdown(page: Page, options: Iterable[Field[Any]]) -> str:
    """Return the table of a method's options."""
    head = ("option", "default", "allowed", "tuned over", "meaning")
    return table_markdown(
        head,
        [
            (
                f"`{flag(f)}`",
                f"`{default_of(f)}`",
                allowed(f),
                tried(f),
                page.attributes.get(f.name, ""),
            )
            for f in options
        ],
    )


def arguments_markdown() -> str:
    """Return the page of `SAMArguments`, with the schedules that its texts name."""
    from .arguments import SAMArguments
    from .parts.radius import SCHEDULES as RADII
    from .parts.when import COINS, SCHEDULES

    every = [
        (f"`{f.name}`", f"`{default_of(f)!r}`", f.metadata["help"]) for f in fields(SAMArguments)
    ]
    when = [*forms(SCHEDULES), *forms(COINS, "random:")]
    parts = [
        "# Arguments",
        GENERATED,
        "The fields of `SAMTrainingArguments` beside those of `TrainingArguments`; on a command "
        "line `--sam`, `--sam_rho` and so on.",
        table_markdown(("argument", "default", "meaning"), every),
        "## Schedules for `sam_when`",
        table_markdown(("text", "updates that are perturbed"), when),
        "## Schedules for `sam_rho`",
        table_markdown(("text", "radius"), forms(RADII)),
    ]
    return "\n\n".join(parts) + "\n"


def forms(known: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return how each schedule is written, and its docstring's first line."""
    from .texts import form_of

    return [(f"`{prefix}{form_of(kind)}`", page_of(kind).title) for kind in known.values()]


def engines_markdown() -> str:
    """Return the page of engines, from the table that decides at start-up."""
    from .engine.table import ENGINES

    parts = [
        "# Engines",
        GENERATED,
        "What SAM works with, and what is refused at start-up.",
        table_markdown(("engine", "methods", "why"), [(r.name, r.methods, r.why) for r in ENGINES]),
    ]
    return "\n\n".join(parts) + "\n"


def table_markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *([escape(c) for c in row] for row in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(text: str) -> str:
    """Return text in which bars, and stars and angle brackets outside of code, are escaped."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].replace("*", r"\*").replace("<", "&lt;")
    return "`".join(parts).replace("|", r"\|")


def body_markdown(body: str) -> str:
    """Return a docstring's body as Markdown: literal blocks fenced, headings bold."""
    return "\n\n".join(_blocks(body))


def _blocks(body: str) -> Iterator[str]:
    literal: list[str] = []
    for block in body.split("\n\n"):
        if block.startswith("    "):
            literal.append(block)
            continue
        if literal:
            yield _fenced(literal)
            literal = []
        if block.strip() != "::":
            yield _paragraph(block)
    if literal:
        yield _fenced(literal)


def _fenced(blocks: list[str]) -> str:
    text = inspect.cleandoc("\n" + "\n\n".join(blocks))
    return f"```text\n{text}\n```"


def _paragraph(block: str) -> str:
    heading, colon, rest = block.partition(":")
    if colon and heading.startswith(HEADINGS):
        text = escape(rest.removeprefix(":")).strip()
        formula = text.split(" ")[1:2] == ["="]
        return f"**{heading}.** {text if formula else text[:1].upper() + text[1:]}".strip()
    return escape(block)


if __name__ == "__main__":
    print(methods_page(), end="")
