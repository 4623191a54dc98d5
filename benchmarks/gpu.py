# SPDX-License-Identifier: Apache-2.0
r"""What only a GPU can tell, in a few minutes: tests, time and memory, short accuracy runs.

python -m benchmarks.gpu --minutes 8 --output_dir DIR [--data_dir DATA]
python -m benchmarks.gpu --rehearse --output_dir DIR
python -m benchmarks.gpu --pack DATA --model_name_or_path MODEL --glue_dir GLUE

Parts run one after the other, the most valuable first, each in a process of its own that is ended
at its limit, all of them within the minutes. What a part finds is written as it comes, README.md in
DIR after each part. The same command again goes on: parts that are done are not run again.
`--rehearse` goes through all of them on a CPU in small, and skips the tests that need a GPU.
`--pack` writes what the accuracy runs read, less than 50 MB: MODEL in bfloat16, and two files from
SST-2 in GLUE; without it they train the embedded task's tiny BERT.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import cells, machine, pages
from benchmarks.markdown import markdown, where
from hf_sam.compare.making import interruptible
from hf_sam.compare.runs import compared, unfinished
from hf_sam.compare.summary import summarise

ENOUGH = 12.0
"""Seconds under which no part is begun: loading the libraries takes most of them."""
PATIENCE = 10.0
"""Seconds that a part has to end before it is killed."""
LIMITS = {"tests": 150.0, "accuracy": 200.0, "bert-base-32x128-all": 110.0, "bert-1.3b": 75.0}
"""Part of a name -> the most seconds for such a part; `USUAL` for others."""
USUAL = 50.0
SLOWER = 8
"""How many times these limits a rehearsal may take, on a CPU that does other work, too."""
ACCURACY_AFTER = 5
"""Cells that come before the accuracy runs."""
METHODS = (
    "none,sam:rho=0.01,sam:rho=0.05,looksam,sam:rho=lr:0.01,when=after:0.7,ascent_fraction=0.25"
)
FILES = {"train_file": "sst2-1000-noise40.csv", "validation_file": "sst2-validation.csv"}
ABSENT = "not measured"


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of its log, and in `parts.json`.
        words: what python is started with.
        limit: the most seconds that it may take.
    """

    name: str
    words: tuple[str, ...]
    limit: float


def plan(settings: argparse.Namespace) -> list[Part]:
    """Return the parts, the most valuable first."""
    folder, small = settings.output_dir, settings.rehearse
    spread = ("-n", "4") if find_spec("xdist") and not small else ()
    tests = ("-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--durations=10", *spread)
    measured = cells.rehearsal() if small else cells.on_cuda(gpus=_gpus())
    timed = [
        _part(c.name, ("-m", "benchmarks.cells", c.name, str(cells.path_of(c, folder / "cells"))))
        for c in measured
    ]
    accuracy = _part("accuracy", _accuracy(settings))
    parts = [_part("tests", tests), *timed]
    parts.insert(1 + ACCURACY_AFTER, accuracy)
    return [replace(part, limit=part.limit * SLOWER) for part in parts] if small else parts


def _part(name: str, words: tuple[str, ...]) -> Part:
    return Part(name, words, next((s for part, s in LIMITS.items() if part in name), USUAL))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _accuracy(settings: argparse.Namespace) -> tuple[str, ...]:
    """Return the words of the comparison, several runs side by side."""
    folder, small = settings.output_dir, settings.rehearse
    jobs = 1 if small else max(min((os.cpu_count() or 1) // 2, 8), 1)
    methods, seeds = ("none,sam:rho=0.01", "1") if small else (METHODS, "3")
    flags: dict[str, Any] = {
        "model_name_or_path": folder / "model",
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 109,
        "learning_rate": 5e-5 if settings.data_dir else 1e-3,
        "weight_decay": 0.01,
        "warmup_steps": 20,
        "num_train_epochs": 10,
        "save_strategy": "no",
        "logging_steps": 16,
        "bf16": not small,
        "disable_tqdm": True,
        "report_to": "none",
    }
    if settings.data_dir:
        flags |= {name: settings.data_dir / file for name, file in FILES.items()}
        flags |= {"pad_to_max_length": False, "train_sampling_strategy": "group_by_length"}
    else:
        flags |= {"data_dir": folder / "embedded", "task_name": "mrpc"}
    flags |= {"max_steps": 3, "max_eval_samples": 32, "use_cpu": True} if small else {}
    return (
        *("-m", "hf_sam.cli", "compare", "--methods", methods, "--seeds", seeds),
        *("--jobs", str(jobs), "--output_dir", str(folder / "accuracy"), "--"),
        *("glue_scripts/run_glue.py", "--do_train", "--do_eval"),
        *(f"--{name}={value}" for name, value in flags.items()),
    )


def prepare(settings: argparse.Namespace) -> None:
    """Write the model in float32, and the embedded data where no other is given."""
    from transformers import AutoModel, AutoTokenizer

    from glue_scripts.embedded import write_all

    model = settings.output_dir / "model"
    if model.is_dir():
        return
    if settings.data_dir is None:
        write_all(settings.output_dir / "embedded", None)
        (settings.output_dir / "embedded" / "model").rename(model)
        return
    import torch

    packed = settings.data_dir / "model"
    AutoTokenizer.from_pretrained(packed).save_pretrained(model)
    AutoModel.from_pretrained(packed, dtype=torch.float32).save_pretrained(model)


def pack(model: str, glue: Path, folder: Path) -> None:
    """Write the model in bfloat16 and the training and validation files into a folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from benchmarks import evidence

    AutoModel.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "model")
    evidence.prepare(glue / "sst2", folder)
    for path in folder.glob("*.csv"):
        if path.name not in FILES.values():
            path.unlink()


def run(parts: Sequence[Part], folder: Path, minutes: float) -> dict[str, Any]:
    """Run the parts that are not done, within the minutes; return what `parts.json` says.

    Args:
        parts: in this order.
        folder: gets `parts.json`, `README.md` and a log for each part.
        minutes: for all of them together.
    """
    latest = time.monotonic() + 60 * minutes
    path = folder / "parts.json"
    states = machine.read(path) if path.is_file() else {}
    for part in parts:
        left = latest - time.monotonic()
        if states.get(part.name, {}).get("state") == "done" or left < ENOUGH:
            continue
        print(f"{part.name}: at most {min(part.limit, left):.0f} s", flush=True)
        start = time.monotonic()
        state = _run(part, folder / f"{part.name}.log", min(part.limit, left - PATIENCE / 2))
        seconds = round(time.monotonic() - start, 1)
        states[part.name] = {"state": state, "seconds": seconds, "words": list(part.words)}
        print(f"{part.name}: {state} after {seconds:.0f} s", flush=True)
        machine.write(path, machine.without_folders(states))
        (folder / "README.md").write_text(page(parts, states, folder), encoding="utf-8")
    return states


def _run(part: Part, log: Path, limit: float) -> str:
    """Run one part; return "done", or what became of it."""
    places = [str(machine.ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    } | dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, places)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *part.words], cwd=machine.ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        code = process.wait(limit)
        return "done" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        return f"ended at its limit of {limit:.0f} s"
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: ask, wait a little, then kill."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(PATIENCE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def page(parts: Sequence[Part], states: Mapping[str, Any], folder: Path) -> str:
    """Return the page: what became of each part, and the tables of what there is."""
    rows = [_row(part, states.get(part.name, {}), folder) for part in parts]
    found = {path.stem: machine.read(path) for path in sorted((folder / "cells").glob("*.json"))}
    first = [where(r["hardware"], r["versions"]) for r in list(found.values())[:1]]
    return "\n\n".join([
        "# What a GPU says",
        *first,
        markdown(["part", "seconds", "state", "its last words"], rows),
        *_failures(folder / "tests.log"),
        *pages.sections(found),
        *_scores(folder / "accuracy"),
    ])


def _row(part: Part, state: Mapping[str, Any], folder: Path) -> list[str]:
    log = folder / f"{part.name}.log"
    said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip("= ") for line in reversed(said) if line.strip()), "")
    last = str(machine.without_folders(last)).replace("|", "/")[:100]
    return [part.name, str(state.get("seconds", "")), state.get("state", ABSENT), last]


def _failures(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", text, re.M)
    return ["## Tests that failed", "```\n" + "\n".join(failed) + "\n```"] if failed else []


def _scores(folder: Path) -> list[str]:
    """Return what the runs that are finished say, beside each other."""
    if not list(folder.glob("runs/*/run.json")):
        return []
    results = summarise(compared(folder), "", missing=unfinished(folder))
    rows = [
        [
            f"`{line['method']}`",
            f"{line['mean']:.2f}",
            str(len(line["seeds"])),
            line["words"],
            "" if line["time"] is None else f"{line['time']:.2f}",
        ]
        for setting in results["settings"]
        for line in setting["lines"]
    ]
    return [
        "## Accuracy",
        markdown(["method", results["title"], "seeds", "in words", "time"], rows),
        f"Not finished: {'; '.join(results['missing']) or 'nothing'}. Several runs shared the GPU, "
        "so their times say little.",
    ]


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="for all parts together")
    add("--output_dir", type=lambda text: Path(text).resolve(), default=Path("outputs/gpu"))
    add("--data_dir", type=lambda text: Path(text).resolve(), help="what --pack wrote")
    add("--rehearse", action="store_true", help="on a CPU, in small")
    add("--pack", type=Path, metavar="DATA", help="write what the accuracy runs read, run nothing")
    add("--model_name_or_path", help="for --pack")
    add("--glue_dir", type=Path, help="for --pack: has sst2/train.parquet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return how many parts are not done.

    Raises:
        ValueError: something that was given cannot be used.
    """
    settings = _parser().parse_args(argv)
    if settings.pack is not None:
        if not (settings.model_name_or_path and settings.glue_dir):
            raise ValueError("--pack needs --model_name_or_path and --glue_dir, to pack from")
        pack(settings.model_name_or_path, settings.glue_dir, settings.pack)
        return 0
    if not settings.rehearse and not _gpus():
        raise ValueError("torch sees no GPU: give --rehearse to go through it all on a CPU")
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    prepare(settings)
    parts = plan(settings)
    with interruptible():
        states = run(parts, settings.output_dir, settings.minutes)
    return sum(states.get(part.name, {}).get("state") != "done" for part in parts)


if __name__ == "__main__":
    sys.exit(main())
