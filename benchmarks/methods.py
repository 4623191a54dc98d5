# SPDX-License-Identifier: Apache-2.0
r"""Measure what an update of each method costs: seconds, passes and peak memory against `none`.

python -m benchmarks.methods --model_name_or_path DIR --data_dir DIR --task_name mrpc

Every row of `--methods` is a trainer with its own copy of the model, on the same examples in the
same order, all padded to `--length`. The trainers take turns in one process: the first update of
each (in an order that is drawn anew every time), the second of each, and so on, so that whatever
else the machine does meets all of them alike. Peak memory is measured afterwards, in a short run
of each by itself. `--no-time` measures memory alone, in a real training's batches: padded to their
longest example.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler is chatty

import torch
import transformers
from datasets import disable_progress_bars

from benchmarks import machine
from benchmarks.interleave import Stepped, take_turns
from benchmarks.memory import update_peaks
from benchmarks.pages import memory_table
from benchmarks.problem import Problem, Training
from benchmarks.rows import TARGETS, Row, parse_rows, predicted, usual
from benchmarks.tables import cost_table

POOL = 1000
"""Training examples that are read: the batches are drawn from them."""
MEMORY_UPDATES = 6
MEMORY_INTERVAL = 4
"""Update that renews a mask in the run for memory, beside the first."""


def prepare(settings: argparse.Namespace, folder: str) -> Problem:
    """Read model and data as `run_glue.py` does.

    Args:
        settings: the command line's.
        folder: for whatever a trainer writes.

    Raises:
        ValueError: something that was given cannot be used.
    """
    from glue_scripts.arguments import parse_arguments
    from glue_scripts.run_glue import prepare as prepare_run

    flags = {
        "model_name_or_path": settings.model_name_or_path,
        "data_dir": settings.data_dir,
        "task_name": settings.task_name,
        "max_seq_length": settings.length,
        "max_train_samples": POOL,
        "seed": settings.seed,
        "use_cpu": settings.use_cpu,
        "pad_to_max_length": settings.time,
        "use_peft": settings.lora_r and True,  # None is no flag at all
        "lora_r": settings.lora_r,
        "output_dir": folder,
        "do_train": True,
        "sam": "none",
        "report_to": "none",
    }
    argv = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    run = prepare_run(*parse_arguments(argv)).trainer
    names = ("updates", "batch_size", "learning_rate", "seed", "bf16", "use_cpu")
    training = Training(**{name: getattr(settings, name) for name in names})
    order = list(range(len(run.train_dataset)))
    random.Random(settings.seed).shuffle(order)
    wanted = training.examples(max(settings.updates, MEMORY_UPDATES))
    order *= -(-wanted // len(order))
    data = run.train_dataset.select(order[:wanted])
    return Problem(run.model, data, run.data_collator, training, folder)


def measure(settings: argparse.Namespace, problem: Problem, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the whole result, as it is written."""
    measured = {row.text: describe(row, settings.batch_size) for row in rows}
    before = machine.hardware()
    for text, samples in _interleaved(problem, rows) if settings.time else ():
        measured[text] |= samples
    if settings.memory:
        for row in rows:
            measured[row.text]["memory"] = memory(problem, row)
            _say(f"memory of {row.text}")
    return {
        "kind": "methods" if settings.time else "memory",
        "command": settings.command,
        "model": Path(settings.model_name_or_path).name,
        "task": settings.task_name,
        "device": problem.training.device.type,
        "settings": {
            name: getattr(settings, name)
            for name in (
                *("updates", "drop", "batch_size", "length", "learning_rate", "bf16", "seed"),
                "lora_r",
            )
        },
        **problem.parameters,
        "hardware": before | {"load_at_end": machine.hardware()["load"]},
        "versions": machine.versions(),
        "rows": list(measured.values()),
    }


def describe(row: Row, batch_size: int) -> dict[str, Any]:
    """Return what is known of a row before it is measured."""
    return {
        "text": row.text,
        "sam": row.key,
        "options": row.options,
        "method": row.method.describe(),
        "target": TARGETS.get(row.text),
        "predicted": dataclasses.asdict(predicted(row.method, batch_size)),
        "mask_updates": [0] if row.renews else [],
    }


def _interleaved(problem: Problem, rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train all rows in turns; yield the samples of each."""
    training = problem.training
    trainers = {row.text: problem.trainer(row, training.updates) for row in rows}
    before = problem.loss(trainers["none"])
    runs = {text: Stepped(trainer, text) for text, trainer in trainers.items()}
    take_turns(
        runs,
        training.updates,
        training.seed,
        lambda update: _say(f"update {update} of {training.updates}"),
    )
    for text, run in runs.items():
        losses = {"fixed_loss": [before, problem.loss(trainers[text])]}
        yield text, dataclasses.asdict(run.recorder.samples) | losses


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory(problem: Problem, row: Row, updates: int | None = None) -> dict[str, Any]:
    """Measure the peaks of a few updates; a mask is renewed in one of them, from few examples.

    Args:
        problem: what is trained.
        row: how.
        updates: how many; default: enough for every method.
    """
    options: dict[str, Any] = {"update_interval": MEMORY_INTERVAL} if row.renews else {}
    if row.key == "ssam_f":
        options["fisher_samples"] = 8
    trainer = problem.trainer(row, updates or MEMORY_UPDATES, **options)
    peaks, samples = update_peaks(trainer)
    return {
        "peaks": peaks,
        "forwards": samples.forwards,
        "mask_updates": [0, MEMORY_INTERVAL] if row.renews else [],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods",
        description="Measure what an update of each method costs.",
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True)
    add("--task_name", required=True, help="GLUE task")
    add("--data_dir", help="folder with <task>/<split>.parquet; default: the Hub")
    add("--updates", type=int, default=20)
    add("--drop", type=int, default=2, help="first updates that do not count")
    add("--batch_size", type=int, default=16)
    add("--length", type=int, default=64, help="tokens that every example is padded to")
    add("--methods", help="rows: KEY or KEY:OPTION=VALUE,..., commas between; default: all")
    add("--lora_r", type=int, help="rank of LoRA adapters, which all rows train in place of all")
    add("--learning_rate", type=float, default=5e-5)
    add("--seed", type=int, default=1)
    add("--bf16", action="store_true", help="forward passes under autocast to bfloat16")
    add("--use_cpu", action="store_true", help="even where there is a GPU")
    add("--time", action=argparse.BooleanOptionalAction, default=True, help="measure it")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it, too")
    add("--output_dir", type=Path, default=machine.RESULTS)
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure as the command line says, print the table, and return the file of the result.

    Raises:
        ValueError: something that was given cannot be used.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    settings = _parser().parse_args(words)
    adapters = settings.lora_r is not None
    rows = parse_rows(settings.methods or ",".join(usual(adapters)))
    if not 0 <= settings.drop < settings.updates or settings.batch_size < 1:
        raise ValueError(
            f"--updates {settings.updates} --drop {settings.drop} --batch_size "
            f"{settings.batch_size}: give at least one example and one update that counts"
        )
    settings.command = machine.command("benchmarks.methods", words)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(settings, prepare(settings, folder), rows)
    path = settings.output_dir / _file_name(result, settings)
    machine.write(path, result)
    print(cost_table(result) if settings.time else memory_table([result]))
    return path


def _file_name(result: dict[str, Any], settings: argparse.Namespace) -> str:
    words = [result["kind"], result["model"], result["task"]]
    if torch.cuda.is_available() and not settings.use_cpu:
        words.append("cuda")
    if settings.bf16:
        words.append("bf16")
    if settings.lora_r is not None:
        words.append("lora")
    return "-".join(words) + ".json"


if __name__ == "__main__":
    main()
