# SPDX-License-Identifier: Apache-2.0
"""`hf-sam compare` and `hf-sam report` on the command line."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import launch

if TYPE_CHECKING:
    from rich.console import Console

    from .display import Display
    from .jobs import Job
    from .making import Running, Watch
    from .runs import Run

COMPARE = """\
Run a script with several methods and seeds, and report which helps, beyond noise or not, and at
what price. The script is any that takes SAMTrainingArguments and evaluates its last model; it and
its arguments come after --; glue and images are ours, as in `hf-sam glue`. Interrupted or killed,
the same command goes on where it was.

  hf-sam compare --methods none,tail_sam,sam:rho=0.01,when=after:0.7 --seeds 5 -- \\
      glue --model_name_or_path DIR --task_name mrpc --do_train --do_eval
"""
METHODS = """\
methods with their options, separated by commas: none,looksam,sam:rho=0.01,when=after:0.7. What has
= before any : is one more option of the method before it: a sam_* argument without its prefix, an
option of the method, or any other training argument; --NAME=VALUE is an argument of the script's
own. none, with the same other arguments, is what each is compared with. Free rivals are rows, too:
none:ema=0.99 (averaged weights), none:neftune_noise_alpha=5, none:num_train_epochs=3
"""
REPORT = """\
Report on finished runs: folders that run_glue.py or run_image_classification.py wrote as their
--output_dir, or that `hf-sam compare` made. Runs whose other arguments differ are compared apart.
"""
OWN = ("glue", "images")
"""Scripts that are known by name."""
INTERRUPTED = 130
"""Exit status of what was interrupted and can go on."""
LIBRARIES = ("jinja2", "matplotlib", "scipy")


def add_commands(commands: Any) -> None:
    """Add both commands to the parser of `hf-sam`."""
    raw = argparse.RawDescriptionHelpFormatter
    comparing = commands.add_parser(
        "compare",
        help="does a method help on this task? runs, and a page with the answer",
        description=COMPARE,
        formatter_class=raw,
        usage="hf-sam compare --methods METHODS [options] -- SCRIPT [ARGUMENTS]",
    )
    _add_runs(comparing)
    _add_common(comparing, "compare")
    comparing.add_argument("script", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    comparing.set_defaults(run=compare)
    reporting = commands.add_parser(
        "report", help="the same page from finished runs", description=REPORT, formatter_class=raw
    )
    reporting.add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
    _add_common(reporting, "report")
    reporting.set_defaults(run=report)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs are made, and how."""
    add = parser.add_argument
    every = [1, 2, 3, 4, 5]
    how = "what starts a run instead of python, such as 'accelerate launch --num_processes 2'"
    few = "training examples to measure the sharpness on at each evaluation; 0: none (64)"
    add("--methods", required=True, help=METHODS)
    add(
        "--seeds", type=seeds, default=every, metavar="N", help="how many, or which as in 1,2,7 (5)"
    )
    add("--jobs", type=positive, default=1, metavar="N", help="runs side by side (1)")
    add("--launch", type=shlex.split, default=[sys.executable], metavar="WORDS", help=how)
    add("--sharpness_examples", type=natural, default=64, metavar="N", help=few)
    add("--keep_models", action="store_true", help="keep the weights that finished runs saved")


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    add = parser.add_argument
    add(
        "--output_dir",
        type=Path,
        default=Path(f"outputs/{name}"),
        metavar="DIR",
        help=f"gets results.json, report.html and the pictures (default: outputs/{name})",
    )
    add(
        "--metric",
        help="what to compare, such as f1 (default: accuracy or what the task is known by)",
    )


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def natural(text: str) -> int:
    """Return a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def seeds(text: str) -> list[int]:
    """Return 1, ..., N for a number N, and the seeds of a list such as `1,2,7`."""
    if "," not in text:
        return list(range(1, positive(text) + 1))
    found = [natural(word.strip()) for word in text.split(",") if word.strip()]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: a seed is there twice")
    return found


def compare(args: argparse.Namespace) -> int:
    """Make the runs of a comparison and report; return the exit status.

    Raises:
        ValueError: something that was given cannot be used.
    """
    from . import jobs, making
    from .display import Display
    from .rows import parse_rows

    require()
    script = script_of(args)
    planned = jobs.plan(parse_rows(args.methods), args.seeds, script, args.output_dir)
    jobs.remember(args.output_dir, planned, script)
    settings = making.Settings(
        args.jobs, tuple(args.launch), args.sharpness_examples, args.keep_models
    )
    screen = console()
    display = Display(planned, args.jobs, screen)
    try:
        with making.interruptible(), display.bars:
            failed = making.make(planned, settings, _checking(display, args.metric))
    except KeyboardInterrupt:
        done = sum(job.finished for job in planned)
        return interrupted(screen, f"{done} of {len(planned)} runs are finished")
    return _end(args, planned, failed, screen)


def script_of(args: argparse.Namespace) -> list[str]:
    """Return the script and its arguments, with the path of one of our own for its name."""
    script = args.script[1:] if args.script[:1] == ["--"] else args.script
    if script and script[0] in OWN:
        return [str(launch.path_of(script[0])), *script[1:]]
    return script


def interrupted(screen: Console, how_far: str) -> int:
    """Say that what is interrupted can go on; return the exit status of an interrupt."""
    screen.print(f"interrupted: {how_far}; the same command goes on")
    return INTERRUPTED


def _checking(display: Display, metric: str | None) -> Watch:
    """Return the display that also checks, at the first run to end, that it has the metric."""
    from .runs import choose_metric, recorded

    def watch(running: Sequence[Running], ended: Sequence[Running]) -> None:
        display(running, ended)
        for job in (run.job for run in ended if run.job.finished):
            choose_metric([recorded(job.folder, job.row.name, job.row.setting)], metric)

    return watch


def _end(args: argparse.Namespace, planned: list[Job], failed: list[Job], screen: Console) -> int:
    from .runs import recorded

    runs = [recorded(j.folder, j.row.name, j.row.setting) for j in planned if j.finished]
    missing = [job.name for job in planned if not job.finished]
    if not runs:
        first = failed[0]
        raise ValueError(
            f"no run is finished; {first.name}: {first.last_words} (see {first.folder / 'log.txt'})"
        )
    write(args, runs, missing, screen)
    return 1 if missing else 0


def report(args: argparse.Namespace) -> int:
    """Report on finished runs; return the exit status.

    Raises:
        ValueError: a folder holds no finished run, or the runs cannot be compared.
    """
    from .runs import read_all, unfinished

    require()
    missing = [name for folder in args.folders for name in unfinished(folder)]
    write(args, read_all(args.folders), missing, console())
    return 0


def write(
    args: argparse.Namespace,
    runs: list[Run],
    missing: list[str],
    screen: Console,
    note: str = "",
) -> dict[str, Any]:
    """Write results.json, the pictures and the page, show the table, and return the results."""
    from .page import terminal, write_page
    from .summary import summarise

    command = shlex.join(["hf-sam", *args.words])
    results = summarise(runs, command, args.metric, missing, note)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = write_page(results, args.output_dir)
    for shown in terminal(results):
        screen.print(shown, markup=False, highlight=False)
    screen.print(f"Page: {page}  Numbers: {path}", highlight=False, soft_wrap=True)
    return results


def require() -> None:
    """Check before anything runs that the report can be made.

    Raises:
        ValueError: a library is missing, with the command that installs it.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(f"the report needs {', '.join(missing)}: pip install 'hf-sam[report]'")


def console() -> Console:
    """Return the screen, or 120 columns of something else."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)
