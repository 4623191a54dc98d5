# SPDX-License-Identifier: Apache-2.0
"""Stands in for a run: `launcher.py -m hf_sam.compare.record FOLDER EXAMPLES SCRIPT WORDS...`.

Finishes at once, fails with `--fail`, or waits beside a process of its own with `--wait`.
"""

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
if "--fail" in words:
    print("first line\nthe last line\n")
    sys.exit(1)
output = folder / "output" / "checkpoint-4"
output.mkdir(parents=True)
for path in (output / "model.safetensors", output.parent / "model.safetensors"):
    path.write_text("weights")
(output.parent / "all_results.json").write_text("{}")
(folder / "run.json").write_text("{}")
