# SPDX-License-Identifier: Apache-2.0
"""Cells of the benchmark: methods beside the plain Trainer, on one model, size and machine.

A cell's rows take turns update by update in one process (A B A B), so that whatever else the
machine does meets all of them alike; a rival's cell has our row for the same method, too. Peak
memory is counted afterwards, in a short run of each row by itself. A cell that several processes
share is measured by `python -m benchmarks.cells NAME FILE` under torch's launcher.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler is chatty

import torch
import transformers

from benchmarks import loops, machine
from benchmarks.costs import costs
from benchmarks.interleave import Stepped, Threaded, Turns, take_turns
from benchmarks.launches import launches
from benchmarks.loops import RIVALS, Loop, rival
from benchmarks.memory import loop_peaks
from benchmarks.methods import MEMORY_UPDATES, describe, memory
from benchmarks.problem import Problem, Training, drawn
from benchmarks.rows import Row, parse_rows, usual

FEW_UPDATES = 4
"""For the memory of a method that does the same in every update."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """What is measured together.

    Attributes:
        model: in `benchmarks.problem.MODELS`.
        method: rows as `benchmarks.rows` reads them, and rivals, spaces between.
        batch_size: examples of a micro-batch on a process.
        length: tokens, or pixels of an image's edge.
        precision: "fp32", or autocast to "bf16" or "fp16".
        device: "cpu" or "cuda".
        accumulation: micro-batches of an update.
        processes: that share an update.
        updates: of each row.
        drop: first updates that do not count.
        label: instead of the method in its name.
    """

    model: str
    method: str
    batch_size: int
    length: int
    precision: str = "fp32"
    device: str = "cpu"
    accumulation: int = 1
    processes: int = 1
    updates: int = 7
    drop: int = 1
    label: str = ""

    @property
    def name(self) -> str:
        """Of its file, and for `--only`."""
        words = [self.device, self.precision, self.model, f"{self.batch_size}x{self.length}"]
        if self.accumulation > 1:
            words.append(f"accumulation{self.accumulation}")
        if self.processes > 1:
            words.append(f"processes{self.processes}")
        return "-".join([*words, re.sub(r"[^A-Za-z0-9.]+", "_", self.label or self.method)])

    @property
    def rows(self) -> list[str]:
        """The plain Trainer, the methods, and for a rival our method that does the same."""
        found = ["none"]
        for name in self.method.split():
            found += [RIVALS[name].beside, name] if name in RIVALS else [name]
        return list(dict.fromkeys(found))

    @property
    def training(self) -> Training:
        """How its rows train."""
        return Training(
            updates=self.updates,
            batch_size=self.batch_size,
            bf16=self.precision == "bf16",
            fp16=self.precision == "fp16",
            use_cpu=self.device == "cpu",
            accumulation=self.accumulation,
            processes=self.processes,
        )


def _many(
    models: dict[str, tuple[int, int]], methods: Iterable[str], **settings: Any
) -> list[Cell]:
    """Return the cells of all models, each with its batch and length, under all methods."""
    return [
        Cell(model, method, batch, length, **settings)
        for model, (batch, length) in models.items()
        for method in methods
    ]


METHODS = [row for row in usual(adapters=False) if row != "none"]
SOME = ["sam", "looksam", "friendly_sam", "esam"]
FAMILY = ("bert-1m", "bert-4m", "bert-11m", "bert-29m", "bert-base")
STEPS = (1, 4, 16)


def on_cpu() -> list[Cell]:
    """Return the cells for a CPU: minutes altogether, on one core."""
    others = {"vit-s16": (2, 96), "resnet18": (8, 32), "lora-0.5b": (2, 8)}
    small, family = {"minilm": (8, 64)}, dict.fromkeys(FAMILY, (4, 32))
    return _unique([
        *(Cell("bert-4m", "sam", 2, 32, accumulation=k) for k in STEPS),
        *(Cell("bert-4m", "sam", 4, 32, processes=n) for n in (1, 2)),
        *_many(family, ["sam"]),
        *_many(small, RIVALS),
        *_many(others, ["loop:sam", *SOME]),
        *_many({"bert-base": (8, 64)}, ["loop:sam"]),
    ])


def on_cuda(gpus: int) -> list[Cell]:
    """Return the cells for a GPU, the most valuable first; all rows of a model take turns."""
    card: dict[str, Any] = {"precision": "bf16", "device": "cuda", "updates": 24, "drop": 4}
    few = {"updates": 10, "drop": 2}
    rivals = [name for name in RIVALS if loops.installed(name)]
    every, some = " ".join([*METHODS, *rivals]), " ".join([*SOME, *rivals[:2]])
    parts = "sam sam:ascent_fraction=0.25"
    return [
        Cell("bert-base", every, 32, 128, label="all", **card),
        Cell("resnet18", some, 128, 224, label="some", **card),
        Cell("bert-1.3b", "sam loop:sam looksam", 8, 128, label="some", **card | few),
        Cell("lora-0.5b", some, 8, 512, label="some", **card),
        Cell("vit-s16", some, 128, 224, label="some", **card),
        Cell("bert-base", " ".join(SOME), 32, 128, label="some", **card | {"precision": "fp16"}),
        Cell("bert-base", parts, 512, 128, label="parts", **card | few),
        *(Cell(model, "sam", 32, 128, **card) for model in (*FAMILY[:-1], "bert-335m")),
        *(Cell("bert-base", "sam", 32, 128, accumulation=k, **card) for k in STEPS[1:]),
        *(Cell("bert-base", "sam", 32, 128, processes=2, **card) for _ in range(gpus > 1)),
    ]


SMALL = {"lora-0.5b": ("lora-1m", 8), "resnet18": ("resnet18", 32), "vit-s16": ("vit-s16", 32)}
"""Model -> the model and the length that stand for it in a rehearsal; for all others a tiny BERT"""


def rehearsal() -> list[Cell]:
    """Return the cells for a GPU as a CPU can go through them in a minute."""
    found = {}
    for cell in on_cuda(gpus=1):
        model, length = SMALL.get(cell.model, ("bert-1m", 8))
        small = replace(
            cell, model=model, length=length, batch_size=4, precision="bf16", device="cpu",
            updates=2, drop=1, accumulation=min(cell.accumulation, 2),
        )  # fmt: skip
        found[small.name] = small
    return list(found.values())


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells in order, each of them once.

    Rivals that are not installed are left out, and so is what a rival's cell measures anyway.
    """
    found = {cell.name: cell for cell in cells if loops.installed(cell.method)}
    beside = {
        replace(cell, method=RIVALS[cell.method].beside).name
        for cell in found.values()
        if cell.method in RIVALS
    }
    return [cell for name, cell in found.items() if name not in beside]


def plan() -> list[Cell]:
    """Return the cells for this machine: the GPU's if it has one."""
    return on_cuda(torch.cuda.device_count()) if torch.cuda.is_available() else on_cpu()


def path_of(cell: Cell, folder: Path) -> Path:
    """Return the file of a cell's result."""
    return folder / f"{cell.name}.json"


def measure(cell: Cell, say: Say) -> dict[str, Any]:
    """Return the result of a cell, as it is written.

    Args:
        cell: what to measure, in this process.
        say: told how far it is.
    """
    size = cell.batch_size * cell.accumulation
    before = machine.hardware()
    with tempfile.TemporaryDirectory() as folder:
        updates = max(cell.updates, MEMORY_UPDATES)
        problem = drawn(cell.model, cell.length, cell.training, updates, folder)
        rows = {name: _described(name, size) for name in cell.rows}
        for name, samples in _take_turns(cell, problem, say):
            rows[name] |= samples
        for name, row in rows.items():
            say(f"memory of {name}")
            row["memory"] = _memory(problem, name)
            if cell.device == "cuda" and name not in RIVALS:
                row["launches"] = launches(problem.trainer(_row(name), FEW_UPDATES))
    result = {
        "kind": "cell",
        "name": cell.name,
        "command": machine.command("benchmarks", ["--only", cell.name]),
        "cell": dataclasses.asdict(cell),
        "settings": {
            "updates": cell.updates,
            "drop": cell.drop,
            "batch_size": size,
            "learning_rate": problem.training.learning_rate,
            "seed": problem.training.seed,
        },
        **problem.parameters,
        "hardware": before | {"load_at_end": machine.hardware()["load"]},
        "versions": machine.versions() | _peer_version(cell),
        "rows": list(rows.values()),
    }
    found = costs(result)
    result["medians"] = {
        name: {"seconds": round(cost.seconds, 6), "ratio": round(cost.ratio, 4)}
        for name, cost in found.items()
    }
    return result


def _peer_version(cell: Cell) -> dict[str, str]:
    from importlib.metadata import version

    peer = "peer:" in cell.method
    return {"pytorch-optimizer": version("pytorch-optimizer")} if peer else {}


def _described(name: str, batch_size: int) -> dict[str, Any]:
    if name not in RIVALS:
        return describe(_row(name), batch_size)
    passes = float(rival(name).passes)
    return {
        "text": name,
        "beside": rival(name).beside,
        "options": rival(name).options,
        "target": None,
        "predicted": {"forwards": passes, "backwards": passes, "time": passes},
        "mask_updates": [],
    }


def _row(name: str) -> Row:
    return parse_rows(name if name == "none" else f"none,{name}")[-1]


def _take_turns(cell: Cell, problem: Problem, say: Say) -> Iterable[tuple[str, dict[str, Any]]]:
    """Train all rows in turns; yield the samples of each."""
    runs: dict[str, Stepped | Loop] = {}
    for name in cell.rows:
        if name in RIVALS:
            runs[name] = Loop(problem, name, cell.updates)
        else:
            runs[name] = Stepped(problem.trainer(_row(name), cell.updates), name)
    turns: dict[str, Turns] = {
        name: Threaded(run) if isinstance(run, Loop) else run for name, run in runs.items()
    }
    take_turns(
        turns, cell.updates, problem.training.seed, lambda n: say(f"update {n} of {cell.updates}")
    )
    for name, run in runs.items():
        samples = run.samples if isinstance(run, Loop) else run.recorder.samples
        yield name, dataclasses.asdict(samples)


def _memory(problem: Problem, name: str) -> dict[str, Any]:
    """Return the peaks of a few updates."""
    if name in RIVALS:
        updates = MEMORY_UPDATES if "k" in rival(name).options else FEW_UPDATES
        peaks, samples = loop_peaks(Loop(problem, name, updates), updates)
        return {"peaks": peaks, "forwards": samples.forwards, "mask_updates": []}
    row = _row(name)
    varies = row.method.keeps_state or row.method.when is not None
    return memory(problem, row, MEMORY_UPDATES if varies else FEW_UPDATES)


def launch(cell: Cell, folder: Path) -> None:
    """Measure a cell that several processes share, and write its result.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is part of the output.
    """
    path = path_of(cell, folder).resolve()
    words = ["-m", "torch.distributed.run", f"--nproc_per_node={cell.processes}"]
    words += ["--standalone", "-m", "benchmarks.cells", cell.name, str(path)]
    subprocess.run([sys.executable, *words], check=True, cwd=machine.ROOT)


def find(name: str) -> Cell:
    """Return the cell of that name."""
    return next(cell for cell in (*plan(), *rehearsal()) if cell.name == name)


def main(argv: list[str]) -> None:
    """Measure one cell in this process, perhaps one of several; the first writes the result."""
    name, path = argv
    transformers.utils.logging.set_verbosity_error()
    result = measure(find(name), lambda text: print(text, flush=True))
    if int(os.environ.get("RANK", "0")) == 0:
        machine.write(Path(path), result)


if __name__ == "__main__":
    main(sys.argv[1:])
