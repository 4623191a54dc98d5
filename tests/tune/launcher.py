# SPDX-License-Identifier: Apache-2.0
"""Stands in for a run of a search: `launcher.py -m hf_sam.compare.child FOLDER 0 SCRIPT WORDS...`.

The score is best at a radius of 0.003; `--help_by SHARE` says by how much.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path


def score(given: dict[str, str]) -> float:
    """The accuracy of a run: a seed does the same to all, a radius to its own."""
    plain = 0.7 + int(given["--seed"]) / 100
    if given["--sam"] == "none":
        return plain
    if given["--sam_rho"] == given.get("--break_at"):
        sys.exit("it broke")
    far = abs(math.log10(float(given["--sam_rho"]) / 0.003))
    return plain + float(given.get("--help_by", 0.02)) * (1 - far) + int(given["--seed"]) / 10_000


def record(words: list[str]) -> dict[str, object]:
    """What a finished run leaves behind."""
    given = dict(zip(words, words[1:], strict=False))
    accuracy = score(given)
    return {
        "seed": int(given["--seed"]),
        "metrics": {"eval_accuracy": accuracy, "eval_loss": -accuracy},
        "log": [{"epoch": e, "loss": 1 / e, "eval_accuracy": accuracy} for e in (1.0, 2.0)],
        "updates": 8,
        "seconds_per_update": 1.0,
        "memory_mb": None,
        "metric_for_best_model": None,
        "versions": {"torch": "2"},
        "hardware": {"cores": 2},
        "command": " ".join(words),
    }


if __name__ == "__main__":
    folder, words = Path(sys.argv[3]), sys.argv[5:]
    (folder / "run.json").write_text(json.dumps(record(words)))
