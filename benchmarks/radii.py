# SPDX-License-Identifier: Apache-2.0
"""The tables of radii in docs/choosing.md: those measured here, and those that papers used.

python -m benchmarks.radii
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine
from benchmarks.markdown import markdown, spread
from benchmarks.studies import plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/choosing.md"
BEGIN = "<!-- radii: python -m benchmarks.radii writes what is below -->\n"
END = "<!-- end of radii -->\n"
STUDIES = ("radius-cola", "radius-mrpc", "radius-embedded")


def main() -> None:
    """Write the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")


def tables() -> str:
    """Return both tables with their headings."""
    measured = markdown(("task", "setting", "seeds", "gain over `none`", "better in"), ours())
    published = markdown(("for", "radius", "when", "from"), theirs())
    return (
        "\n### Measured here\n\nThe score after the last update, on examples of the training set "
        "that were held out; the gain in points, taken seed by seed. Every command is in the file "
        "of the task in `benchmarks/results/`.\n\n"
        f"{measured}\n\n### Published\n\nOf SAM itself; those of the other "
        f"methods are on the [page of papers](papers.md).\n\n{published}\n\n"
    )


def ours() -> Iterator[tuple[str, ...]]:
    """Yield a row for every setting of every study; the first one says the task."""
    for study in STUDIES:
        task = plan(study)["about"].split(". ")[0].strip().rstrip(".")
        for line in machine.read(machine.RESULTS / f"{study}.json")["settings"][0]["lines"]:
            if found := line["difference"]:
                gains = found["values"]
                better = f"{found['better']} of {len(gains)}"
                yield task, f"`{line['method']}`", str(len(gains)), spread(gains), better
                task = ""


def theirs() -> Iterator[tuple[str, ...]]:
    """Yield a row for every published setting of SAM itself."""
    papers: dict[str, Any] = yaml.safe_load((ROOT / "docs/papers.yaml").read_text(encoding="utf-8"))
    for setting in papers["sam"]["settings"]:
        rho = str(setting["args"]["sam_rho"])
        yield setting["for"], rho, setting["args"].get("sam_when", "always"), setting["from"]


if __name__ == "__main__":
    main()
