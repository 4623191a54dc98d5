# SPDX-License-Identifier: Apache-2.0
"""`hf-sam`: the scripts, the methods and their pages, comparisons, estimates, versions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, launch
from .compare.command import add_commands
from .environment import report
from .estimate.command import add_command
from .pages import (
    arguments_markdown,
    engines_markdown,
    explain_text,
    methods_markdown,
)
from .prices import COLUMNS, by_price
from .tune.command import add_command as add_tune


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        if words[:1] and words[0] in launch.SCRIPTS:  # their arguments are the scripts' own
            return launch.start(words[0], words[1:])
        args = parser.parse_args(words, argparse.Namespace(words=words))
        if not hasattr(args, "run"):
            parser.print_help()
            return 0
        return args.run(args) or 0
    except ValueError as error:
        print(f"hf-sam: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-sam",
        description="Sharpness-Aware Minimization (not Segment Anything) for the Hugging Face "
        "Trainer: what there is, and what it does.",
    )
    parser.add_argument("--version", action="version", version=f"hf-sam {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, script in launch.SCRIPTS.items():
        commands.add_parser(name, help=script.about, add_help=False)
    methods = commands.add_parser("methods", help="table of the methods: cost, memory, state, use")
    methods.set_defaults(run=lambda args: print_methods())
    explain = commands.add_parser("explain", help="one method's page: formula, cost, options")
    explain.add_argument("method", help="key of the method, such as looksam")
    explain.set_defaults(run=lambda args: print(explain_text(args.method)))
    docs = commands.add_parser("docs", help="write the reference pages as Markdown")
    docs.add_argument("--output", type=Path, default=Path("docs"), help="folder (default: docs)")
    docs.set_defaults(run=lambda args: write_docs(args.output))
    add_commands(commands)
    add_tune(commands)
    add_command(commands)
    env = commands.add_parser("env", help="versions and devices, for a bug report")
    env.set_defaults(run=lambda args: print(report()))
    return parser


def print_methods() -> None:
    """Print the table of methods."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    for name, group in by_price():
        table = Table(*COLUMNS, box=SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        for row in group:
            table.add_row(*row)
        console.print(table)
    print("P: one copy of the trainable parameters. A method's page: hf-sam explain KEY")


def write_docs(folder: Path) -> None:
    """Write methods.md, arguments.md and engines.md into a folder, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "methods.md": methods_markdown(),
        "arguments.md": arguments_markdown(),
        "engines.md": engines_markdown(),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"wrote {folder / name}")


if __name__ == "__main__":
    sys.exit(main())
