# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what there is, and a quick measurement with a tiny model on embedded data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the Hub

from benchmarks import machine, methods
from glue_scripts.embedded import write_all

FOLDER = Path("outputs/bench")


def main() -> None:
    """List results and commands, then measure."""
    print("Results, tables and commands: benchmarks/README.md. There are:")
    for path in sorted(machine.RESULTS.glob("*.json")):
        print(f"  {path.name:40} {machine.read(path).get('command', 'run_glue.py')[:100]}")
    print(f"\nNow a tiny BERT on embedded data, in {FOLDER}.\n", flush=True)
    write_all(FOLDER)
    path = methods.main([
        f"--model_name_or_path={FOLDER}/model",
        f"--data_dir={FOLDER}",
        "--task_name=mrpc",
        "--length=32",
        f"--output_dir={FOLDER}",
    ])
    print(f"\nWritten to {path}. Small models show the overhead, not the passes: for a real one,")
    print("python -m benchmarks.methods --model_name_or_path DIR --data_dir DIR --task_name mrpc")


if __name__ == "__main__":
    main()
