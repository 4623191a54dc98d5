# SPDX-License-Identifier: Apache-2.0
"""Markdown tables, and the words of all pages about a machine and about several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

MB = 2**20


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def where(hardware: dict[str, Any], versions: dict[str, str]) -> str:
    """Return the machine and the versions in words."""
    words = [hardware["gpu"]] if "gpu" in hardware else []
    words.append(
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} thread"
        f"{'s' if hardware['threads'] > 1 else ''} of torch, load {hardware['load']:g} at the start"
    )
    if "load_at_end" in hardware:
        words[-1] += f" and {hardware['load_at_end']:g} at the end"
    return "; ".join([*words, ", ".join(f"{k} {v}" for k, v in versions.items())]) + "."


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return `mean ± standard deviation`, the mean alone for one value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
