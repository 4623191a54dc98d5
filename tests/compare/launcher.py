# SPDX-License-Identifier: Apache-2.0
"""Stands in for a run: `launcher.py -m hf_sam.compare.child FOLDER EXAMPLES SCRIPT WORDS...`.

Finishes at once, fails with `--fail METHOD`, or waits beside a process of its own with `--wait`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

folder, words = Path(sys.argv[3]), sys.argv[6:]
if "--wait" in words:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (folder / "child").write_text(str(child.pid))
    (folder / "progress").write_text("3 12")
    time.sleep(60)
given = dict(zip(words, words[1:], strict=False))
if given.get("--fail") in (given["--sam"], "all"):
    print("first line\nthe last line\n")
    sys.exit(1)
output = folder / "output" / "checkpoint-4"
output.mkdir(parents=True)
for path in (output / "model.safetensors", output.parent / "model.safetensors"):
    path.write_text("weights")
(output.parent / "all_results.json").write_text("{}")
accuracy = 0.8 + int(given["--seed"]) / 100 + (given["--sam"] != "none") / 50
log = [{"epoch": e, "loss": 1 / e, "eval_accuracy": accuracy} for e in (1.0, 2.0)]
record = {
    "seed": int(given["--seed"]),
    "metrics": {"eval_accuracy": accuracy},
    "log": log,
    "updates": 8,
    "seconds_per_update": 1.0,
    "memory_mb": 100.0,
    "metric_for_best_model": None,
    "versions": {"torch": "2"},
    "hardware": {"cores": 2},
    "command": " ".join(["python", *sys.argv[5:]]),
}
(folder / "run.json").write_text(json.dumps(record))
