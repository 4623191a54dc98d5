# SPDX-License-Identifier: Apache-2.0
"""`--help` in a moment: the arguments are read off their source, as importing them takes seconds.

The arguments of SAM come first, then the script's, then transformers' own.
"""

from __future__ import annotations

import ast
import contextlib
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

GROUPS = {
    "SAMArguments": "Sharpness-Aware Minimization",
    "ModelArguments": "model",
    "HubArguments": "model, from the Hub or elsewhere",
    "DataTrainingArguments": "data",
    "TrainingArguments": "training, as transformers' TrainingArguments",
}

SCRIPT_DEFAULTS = {"sam_track_memory": True}  # where they are not those of the dataclasses


@dataclass(frozen=True)
class Argument:
    """A field of a dataclass of arguments, as its source has it.

    Attributes:
        name: of the field.
        kind: its annotation.
        default: as Python writes it; None if it must be given.
        text: its help.
    """

    name: str
    kind: str
    default: str | None
    text: str


def show(folder: Path, script: str) -> str:
    """Return the help of a script.

    Args:
        folder: the script's, with its `arguments.py`.
        script: its name.
    """
    parser = ArgumentParser(
        prog=script,
        usage="%(prog)s [ARGUMENTS.yaml | ARGUMENTS.json] [--flag value ...]",
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=32, width=100),
        add_help=False,
    )
    found = {name: group for path in _sources(folder) for name, group in _classes(path).items()}
    for name, title in GROUPS.items():
        group = parser.add_argument_group(title)
        for argument in found.get(name, []):
            flags = [f"--{argument.name}"]
            if argument.kind == "bool" and argument.default == "True":
                flags.append(f"--no_{argument.name}")
            shown = "required" if argument.default is None else f"default: {argument.default}"
            text = f"{argument.text} ({shown})".replace("%", "%%")
            group.add_argument(*flags, metavar=argument.kind, help=text)
    return parser.format_help()


def _sources(folder: Path) -> Iterator[Path]:
    for package, name in (("hf_sam", "arguments.py"), ("transformers", "training_args.py")):
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        yield Path(spec.submodule_search_locations[0]) / name
    yield Path(__file__).with_name("arguments.py")
    yield folder / "arguments.py"


def _classes(path: Path) -> dict[str, list[Argument]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name: list(_arguments(node))
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in GROUPS
    }


def _arguments(node: ast.ClassDef) -> Iterator[Argument]:
    for line in node.body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        call = line.value
        options = {word.arg: word.value for word in getattr(call, "keywords", []) if word.arg}
        if isinstance(options.get("init"), ast.Constant):
            continue  # init=False: set by transformers itself
        kind = ast.unparse(line.annotation).replace(" | None", "")
        name = line.target.id
        default = str(SCRIPT_DEFAULTS.get(name) or _default(call, options) or "") or None
        yield Argument(name, kind, default, _help(options))


def _default(call: ast.expr | None, options: dict[str, ast.expr]) -> str | None:
    if call is not None and not isinstance(call, ast.Call):
        return ast.unparse(call)
    if "default" in options:
        return ast.unparse(options["default"])
    factory = options.get("default_factory")
    return ast.unparse(getattr(factory, "body", factory)) if factory is not None else None


def _help(options: dict[str, ast.expr]) -> str:
    metadata = options.get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                return " ".join(_text(value).split())
    return ""


def _text(node: ast.expr) -> str:
    with contextlib.suppress(ValueError):
        return str(ast.literal_eval(node))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    return ast.unparse(node)
