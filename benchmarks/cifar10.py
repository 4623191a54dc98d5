# SPDX-License-Identifier: Apache-2.0
r"""CIFAR-10 as the papers train it: accuracy runs, their speed against `none`, and the page.

python -m benchmarks.cifar10 --method sam --seed 1 --epochs 200 --bf16 --channels_last
python -m benchmarks.cifar10 --speed none sam esam --bf16 --channels_last
python -m benchmarks.cifar10 --table

A run follows the recipe `cifar10-resnet18-METHOD` of `vision_scripts/`. What is not an option here
goes on to `run_image_classification.py` (`--torch_compile`, `--sam_rho 0.1`, ...). The same command
again resumes a run that was stopped from its last epoch, or says that its result is there. A result
is `benchmarks/results/cifar10-NAME.json`.

`--small` is what a CPU can do: 5,000 training and 2,000 test images, a ResNet of 8 layers, 10
epochs, bfloat16 autocast. `--speed` lets the methods take turns, update by update, in one process,
so that whatever else the machine does meets all of them alike; accuracy runs may share their
machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback, TrainerControl

from benchmarks import machine
from benchmarks.cifar10_page import Result, images_per_second, page
from benchmarks.interleave import Stepped
from hf_sam import METHODS
from shared_scripts import running
from vision_scripts.arguments import RECIPES, parse_arguments
from vision_scripts.run_image_classification import prepare

SMALL = {
    "config_overrides": '{"depths": [1, 1, 1], "hidden_sizes": [16, 32, 64]}',
    "max_train_samples": 5000,
    "max_eval_samples": 2000,
    "num_train_epochs": 10,
    "use_cpu": True,
    "bf16": True,
    "channels_last": True,
}
PAGE = Path(__file__).parent / "CIFAR10.md"


def flags(settings: argparse.Namespace, method: str, folder: Path) -> list[str]:
    """Return the words for `run_image_classification.py`.

    Raises:
        ValueError: the data folder has no such files.
    """
    own = f"cifar10-resnet18-{method}"
    values: dict[str, Any] = {"recipe": own}
    if not (RECIPES / f"{own}.yaml").is_file():  # nobody has published its numbers
        values = {"recipe": "cifar10-resnet18-none", "sam": method}
    values |= {"output_dir": folder, "report_to": "none", "seed": settings.seed}
    values |= {"disable_tqdm": True}
    values |= SMALL if settings.small else {}
    if settings.epochs is not None:
        values["num_train_epochs"] = settings.epochs
    words = [f"--{name}={value}" for name, value in values.items()]
    if settings.data_dir is not None:
        for flag, pattern in (("train_file", "train*.parquet"), ("validation_file", "test*")):
            files = sorted(map(str, settings.data_dir.glob(pattern)))
            if not files:
                raise ValueError(f"--data_dir {settings.data_dir}: has no file {pattern}")
            words += [f"--{flag}", *files]
    return words + settings.more


class StopAfter(TrainerCallback):
    """Ends the training after the first epoch that ends when the time is up."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def on_epoch_end(
        self, args: Any, state: Any, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look at the clock; the epoch is still evaluated and saved."""
        control.should_training_stop |= time.monotonic() > self._end
        return control


def result_name(settings: argparse.Namespace) -> str:
    """Return the name of a run's result."""
    words = ["cifar10", settings.method, f"seed{settings.seed}"]
    words += ["small"] if settings.small else []
    words += [f"{settings.epochs}epochs"] if settings.epochs is not None else []
    return "-".join([*words, *([settings.tag] if settings.tag else [])])


def accuracy_run(settings: argparse.Namespace) -> Path | None:
    """Train, go on where a run was stopped, and write the result; None if time was up before."""
    name = result_name(settings)
    path, folder = settings.results / f"{name}.json", settings.output_dir / name
    if path.is_file():
        print(f"{name}: there is a result already")
        return path
    words = flags(settings, settings.method, folder)
    if any(folder.glob("checkpoint-*")):
        words.append("--resume_from_checkpoint=yes")
    model_args, data_args, args = parse_arguments(words)
    run = prepare(model_args, data_args, args, running.checkpoint(args), words)
    run.trainer.remove_callback(PrinterCallback)
    run.trainer.add_callback(StopAfter(settings.minutes))
    before = machine.hardware()
    metrics = running.train(run)
    epoch = run.trainer.state.epoch or 0.0
    if epoch < args.num_train_epochs:
        print(f"{name}: stopped after epoch {epoch:g} of {args.num_train_epochs:g}; go on with the")
        print("same command")
        return None
    history = _history(run.trainer.state.log_history)
    metrics |= running.evaluate(run)
    machine.write(path, machine.without_folders(_result(settings, run, metrics, history, before)))
    print(f"{path.name}: accuracy {metrics['eval_accuracy']:.4f}")
    return path


def _result(
    settings: argparse.Namespace,
    run: running.Run,
    metrics: dict[str, Any],
    history: dict[str, list[float]],
    before: dict[str, Any],
) -> Result:
    everything = machine.read(Path(str(run.trainer.args.output_dir)) / "all_results.json")
    used = ("cpu", "cores", "threads", "gpu")
    return {
        "kind": "cifar10",
        "command": settings.command,
        "method": settings.method,
        "options": shlex.join(settings.more),
        "seed": settings.seed,
        "small": settings.small,
        "train_images": metrics["train_samples"],
        "test_images": metrics["eval_samples"],
        "parameters": sum(p.numel() for p in run.trainer.model.parameters()),
        "accuracy": 100 * metrics["eval_accuracy"],
        "best_accuracy": 100 * max(history["eval_accuracy"]),
        "history": history,
        "hardware": {key: value for key, value in before.items() if key in used},
        "versions": machine.versions(),
        "all_results": everything,
    }


def _history(log: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return training loss, and accuracy and loss on the test images, after each epoch."""
    names = ("loss", "eval_accuracy", "eval_loss")
    return {name: [entry[name] for entry in log if name in entry] for name in names}


class InputWait:
    """Measures how long each update waits for its batch, and what a GPU does to make it."""

    def __init__(self, trainer: Any) -> None:
        self.seconds: list[float] = []
        self._cuda = trainer.args.device.type == "cuda"
        self._get = trainer.get_batch_samples
        trainer.get_batch_samples = self._timed

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        start = self._now()
        batches = self._get(*args, **kwargs)
        self.seconds.append(round(self._now() - start, 6))
        return batches


def speed(settings: argparse.Namespace) -> Path:
    """Let the methods take turns, and write what each of their updates took."""
    before = machine.hardware()
    rows: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {m: _speed_trainer(settings, m, Path(folder)) for m in settings.speed}
        waits = {m: InputWait(trainer) for m, trainer in trainers.items()}
        runs = {m: Stepped(trainer, m) for m, trainer in trainers.items()}
        _take_turns(runs, settings.updates, settings.seed)
        for method, run in runs.items():
            samples = dataclasses.asdict(run.recorder.samples)
            rows[method] = samples | {"input_seconds": waits[method].seconds}
        args = trainers["none"].args
        parameters = sum(p.numel() for p in trainers["none"].model.parameters())
    result = {
        "kind": "cifar10-speed",
        "command": settings.command,
        "small": settings.small,
        "batch_size": args.per_device_train_batch_size,
        "updates": settings.updates,
        "drop": settings.drop,
        "parameters": parameters,
        "hardware": before | {"load_at_end": machine.hardware()["load"]},
        "versions": machine.versions(),
        "rows": rows,
    }
    words = ["cifar10", "speed", *(["small"] if settings.small else [])]
    path: Path = settings.results / "-".join([*words, *([settings.tag] if settings.tag else [])])
    path = path.with_suffix(".json")
    machine.write(path, result)
    for method in rows:
        print(f"{method}: {images_per_second(result, method):.0f} images/s")
    return path


def _speed_trainer(settings: argparse.Namespace, method: str, folder: Path) -> Any:
    quiet = [f"--{what}_strategy=no" for what in ("save", "eval", "logging")]
    quiet += [f"--max_steps={settings.updates}", "--do_eval=false"]
    trainer = prepare(*parse_arguments([*flags(settings, method, folder / method), *quiet])).trainer
    trainer.remove_callback(PrinterCallback)
    return trainer


def _take_turns(runs: dict[str, Stepped], updates: int, seed: int) -> None:
    order = random.Random(seed)
    try:
        for update in range(updates):
            for method in order.sample(list(runs), len(runs)):
                runs[method].step()
            print(f"update {update + 1} of {updates}", file=sys.stderr, flush=True)
    finally:
        for run in runs.values():
            run.finish()


def write_page(settings: argparse.Namespace) -> Path:
    """Write the page of all results."""
    files = sorted(settings.results.glob("cifar10-*.json"))
    settings.page.write_text(page(machine.read(path) for path in files), encoding="utf-8")
    print(f"wrote {settings.page.name} from {len(files)} results")
    return Path(settings.page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar10",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--method", choices=list(METHODS), metavar="METHOD", help="train with it")
    what.add_argument("--speed", nargs="+", choices=list(METHODS), metavar="METHOD")
    what.add_argument("--table", action="store_true", help="write the page")
    add = parser.add_argument
    add("--seed", type=int, default=1)
    add("--epochs", type=int, help="instead of the recipe's")
    add("--small", action="store_true", help="a subset and a small model")
    add("--data_dir", type=Path, help="folder with train*.parquet and test*; default: the Hub")
    add("--minutes", type=float, default=float("inf"), help="stop at the next epoch's end")
    add("--updates", type=int, default=40, help="of each method, for --speed")
    add("--drop", type=int, default=5, help="first updates that do not count, for --speed")
    add("--tag", default="", help="last word of the result's name")
    add("--output_dir", type=Path, default=Path("runs"), help="where runs keep their checkpoints")
    add("--results", type=Path, default=machine.RESULTS)
    add("--page", type=Path, default=PAGE)
    return parser


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Do what the command line says.

    Raises:
        ValueError: something that was given cannot be used.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    settings, more = _parser().parse_known_args(words)
    settings.more, settings.command = more, machine.command("benchmarks.cifar10", words)
    if settings.table:
        return write_page(settings)
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    if settings.method is not None:
        return accuracy_run(settings)
    if "none" not in settings.speed or not 0 <= settings.drop < settings.updates:
        raise ValueError(
            f"--speed {' '.join(settings.speed)} --updates {settings.updates} --drop "
            f"{settings.drop}: give none, which all are compared with, and one update that counts"
        )
    return speed(settings)


if __name__ == "__main__":
    main()
