# SPDX-License-Identifier: Apache-2.0
r"""How much memory each method takes on GLUE: a table of tasks and methods.

python -m benchmarks.glue_memory --model_name_or_path DIR --data_dir DIR

Every task and method is a short training with `run_glue.py`'s model, data and padding, all methods
of a task on the same batches. Counted is what torch holds at most: the model, gradients, optimizer,
method and activations; on a CPU by torch's profiler, on a GPU by its allocator. Results that are
there are not measured again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler is chatty

import transformers
from datasets import disable_progress_bars

from benchmarks import machine, pages
from benchmarks.methods import MEMORY_UPDATES, memory, prepare
from benchmarks.problem import Problem
from benchmarks.rows import Row, parse_rows
from benchmarks.tables import read_results

FOLDER = machine.RESULTS / "memory"
TASKS = ("mrpc", "cola", "mnli")
METHODS = "none,sam,ssam_f,ssam_d,esam,looksam,msam"
POOL = 1000
"""Training examples that are read: the batches are drawn from them."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True)
    add("--data_dir", help="folder with <task>/<split>.parquet; default: the Hub")
    add("--tasks", nargs="+", default=list(TASKS))
    add("--methods", default=METHODS, help="as in `python -m benchmarks.methods`")
    add("--batch_size", type=int, default=32)
    add("--length", type=int, default=128, help="tokens that examples are cut to")
    add("--learning_rate", type=float, default=5e-5)
    add("--seed", type=int, default=1)
    add("--bf16", action="store_true", help="forward passes under autocast to bfloat16")
    add("--use_cpu", action="store_true", help="even where there is a GPU")
    add("--output_dir", type=Path, default=FOLDER)
    return parser


def main(argv: Sequence[str] | None = None) -> str:
    """Measure what is missing, and return the table, which is printed.

    Raises:
        ValueError: something that was given cannot be used.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    settings = _parser().parse_args(words)
    rows = parse_rows(settings.methods)
    settings.command = machine.command("benchmarks.glue_memory", words)
    settings.updates, settings.lora_r = MEMORY_UPDATES, None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    for task in settings.tasks:
        settings.task_name = task
        missing = [row for row in rows if not _path(settings, row).is_file()]
        if missing:
            _measure(settings, missing)
    table = pages.memory_table(read_results(settings.output_dir))
    print(table)
    return table


def _measure(settings: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write the results of a task's rows."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"max_train_samples": POOL, "pad_to_max_length": False, "bf16": settings.bf16}
        problem = prepare(settings, folder, **flags)
        for row in rows:
            print(f"{settings.task_name}: {row.text}", file=sys.stderr, flush=True)
            machine.write(_path(settings, row), _result(settings, problem, row))


def _path(settings: argparse.Namespace, row: Row) -> Path:
    model = Path(settings.model_name_or_path).name
    method = row.text.replace(":", "_").replace(",", "_")
    return Path(settings.output_dir) / f"{model}-{settings.task_name}-{method}.json"


def _result(settings: argparse.Namespace, problem: Problem, row: Row) -> dict[str, Any]:
    measured = memory(problem, row)
    names = ("batch_size", "length", "learning_rate", "bf16", "seed", "updates")
    size = problem.parameters
    return {
        "kind": "memory",
        "command": settings.command,
        "model": Path(settings.model_name_or_path).name,
        "task": settings.task_name,
        "method": row.text,
        "device": problem.training.device.type,
        "settings": {name: getattr(settings, name) for name in names},
        **size,
        "max_memory_bytes": size["model_bytes"] + max(measured["peaks"]),
        "memory": measured,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }


if __name__ == "__main__":
    main()
