# SPDX-License-Identifier: Apache-2.0
"""`hf-sam tune` on the command line."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compare.command import console, interrupted, positive, require, script_of, write

if TYPE_CHECKING:
    from ..compare.making import Running
    from .search import Budget, Search

TUNE = """\
Choose a method, its radius and its options for this task, on a part of its training set. Whole
trainings are compared with the plain Trainer's, seed by seed; after each seed the candidates that
are not among the better half are dropped (successive halving). The script is any that takes
SAMTrainingArguments, evaluates its last model, and takes --train_val_split SHARE: then it evaluates
on that share of its training set and leaves the validation set unread. Interrupted or killed, the
same command goes on where it was; with a larger budget, too.

  hf-sam tune --budget 30m --methods sam,tail_sam -- \\
      glue_scripts/run_glue.py --model_name_or_path DIR --task_name mrpc --do_train --do_eval
"""
METHODS = """\
methods to choose from, as `hf-sam compare` takes them (default: sam). An option that is given stays
as it is. First radii are tried, mostly from 0.0001 to 0.2, then around the best of them the values
of options that `hf-sam explain KEY` lists
"""
SPLIT = "--train_val_split 0.2"
NOTE = "Scores are on a part of the training set, by which one of them was chosen."
UNITS = {"s": 1, "m": 60, "h": 3600}


def add_command(commands: Any) -> None:
    """Add the command to the parser of `hf-sam`."""
    parser = commands.add_parser(
        "tune",
        help="which radius, which method? a search on a part of the training set",
        description=TUNE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="hf-sam tune --budget BUDGET [options] -- SCRIPT [ARGUMENTS]",
    )
    add = parser.add_argument
    how = "what starts a run instead of python, such as 'accelerate launch --num_processes 2'"
    what = "what makes the script evaluate on a part of its training set"
    where = "gets the runs, report.html and best.json (default: outputs/tune)"
    which = "the score that decides (default: accuracy or what the task is known by)"
    add("--budget", type=budget, required=True, help="runs, as in 20runs, or time: 90s, 30m, 2h")
    add("--methods", default="sam", help=METHODS)
    add("--seeds", type=positive, default=4, metavar="N", help="for a candidate, at most (4)")
    add("--jobs", type=positive, default=1, metavar="N", help="runs side by side (1)")
    add("--launch", type=shlex.split, default=[sys.executable], metavar="WORDS", help=how)
    add("--split", default=SPLIT, metavar="WORDS", help=f"{what} (default: '{SPLIT}')")
    add("--output_dir", type=Path, default=Path("outputs/tune"), metavar="DIR", help=where)
    add("--metric", help=which)
    add("script", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=tune)


def budget(text: str) -> Budget:
    """Return the budget of a text such as `20runs` or `30m`."""
    from .search import RUNS, SECONDS, Budget

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(runs?|s|m|h)", text.strip())
    if not found or float(found[1]) <= 0 or (found[2].startswith("run") and "." in found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is neither runs, as in 20runs, nor time (30m)")
    if found[2].startswith("run"):
        return Budget(int(found[1]), RUNS)
    return Budget(float(found[1]) * UNITS[found[2]], SECONDS)


def tune(args: argparse.Namespace) -> int:
    """Search, report, and say which arguments to copy; return the exit status.

    Raises:
        ValueError: something that was given cannot be used.
    """
    from ..compare import jobs, making
    from .display import Display
    from .search import Broken, Search
    from .space import candidates

    require()
    if find_spec("optuna") is None:
        raise ValueError("the search needs optuna: pip install 'hf-sam[tune]'")
    given = script_of(args)
    jobs.check_script(given)
    script = with_split(given, shlex.split(args.split))
    search = Search(
        candidates(args.methods), args.seeds, script, args.output_dir, args.budget, args.metric
    )
    screen = console()
    display = Display(search, screen)

    def watch(running: Sequence[Running], ended: Sequence[Running]) -> None:
        search.watch(running, ended)
        display(running, ended)

    settings = making.Settings(args.jobs, tuple(args.launch), examples=0)
    try:
        with making.interruptible(), display.bars:
            making.pool(search.take, settings, watch)
    except KeyboardInterrupt:
        return interrupted(screen, f"{search.runs} runs were begun")
    except Broken as error:
        raise ValueError(f"{error}; {_about_split(args.split)}") from None
    return _end(args, search, given)


def with_split(script: Sequence[str], split: Sequence[str]) -> list[str]:
    """Return the script with the words of the split, unless it has its own."""
    names = {word.partition("=")[0] for word in script}
    own = any(word.startswith("--") and word.partition("=")[0] in names for word in split)
    return [*script] if own else [*script, *split]


def _about_split(split: str) -> str:
    return f"runs have {split!r}: a script that knows no such argument needs another --split"


def _end(args: argparse.Namespace, search: Search, script: Sequence[str]) -> int:
    best = search.best()
    runs = [run for row in search.rows for run in search.results(row)]
    results = write(args, runs, [], console(), NOTE)
    lines = {line["method"]: line for line in results["settings"][0]["lines"]}
    line = lines[best.name]
    gained = line["difference"]["beyond_noise"] and search.gain(best, len(line["seeds"])) > 0
    chosen = best if gained else search.rows[0]
    tried = sum(bool(search.results(row)) for row in search.rows[1:])
    path = args.output_dir / "best.json"
    path.write_text(json.dumps(chosen.arguments, indent=1) + "\n", encoding="utf-8")
    said = f"Best of {tried} on a part of the training set: {best.text}, {line['words']}."
    print(said if gained else f"{said} Nothing tells it from the plain Trainer, which costs least.")
    print(f"Arguments to copy: {flags(chosen.arguments)}")
    seeds = ",".join(str(search.seeds + seed) for seed in range(1, 6))
    check = f"hf-sam compare --methods none,{best.text} --seeds {seeds} -- {shlex.join(script)}"
    print(f"The best of several looks better than it is; with new seeds and all data: {check}")
    return 0


def flags(arguments: dict[str, str]) -> str:
    """Return arguments as words of a command line."""
    return shlex.join(word for name, value in arguments.items() for word in (f"--{name}", value))
