# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: command, versions, hardware; and how it is written."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import hf_sam

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def command(module: str, argv: Sequence[str]) -> str:
    """Return the command line as it was typed, absolute folders left out."""
    return str(without_folders(shlex.join(["python", "-m", module, *argv])))


def versions() -> dict[str, str]:
    """Return the versions that a measurement depends on."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | found | {"hf_sam": hf_sam.__version__}


def hardware() -> dict[str, Any]:
    """Return processor, cores, torch's threads, the last minute's load, and the GPU."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(psutil.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M)
        if names:
            return names[0].strip()
    return platform.processor() or platform.machine()


def without_folders(value: Any) -> Any:
    """Return a JSON value whose absolute paths are cut down to their last name."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"'~?/(?:[^/']+/)*([^/']+)/?'", r"'\1'", value)  # quoted, as shlex.join does
    return re.sub(r"(?<![\w.:/~-])~?/(?:[^\s/'\"]+/)*([^\s/'\"]+)/?", r"\1", value)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, lists of numbers on one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    flat = re.sub(
        r"\[\n\s*(-?[\d.][^\[\]{}\"]*?)\s*\]", lambda m: "[" + " ".join(m[1].split()) + "]", text
    )
    path.write_text(flat + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read a result."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
