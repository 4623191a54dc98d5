# SPDX-License-Identifier: Apache-2.0
r"""Does it help? Studies with `hf-sam compare`, what came of them, and the words of their tables.

python -m benchmarks.studies radius-mrpc

A plan, `plans/NAME.toml`, has a `title`, what it is `about`, perhaps a command that gets its data
ready (`prepare`) and a `note`, and the `command`, which begins with `hf-sam compare`. Killed, the
same command goes on where it was. What came of it is kept in `results/NAME.json`: the comparison's
`results.json` without the curves. Runs of a `busy` plan shared the machine with other work: their
times are left out. A plan whose `page` is not given is shown in README.md; how the other pages
begin is in `plans/PAGE`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.markdown import markdown
from hf_sam import cli
from hf_sam.compare.command import INTERRUPTED
from hf_sam.compare.page import score
from hf_sam.compare.paired import signed
from hf_sam.parts.base import nearest

PLANS = Path(__file__).parent / "plans"
README = "README.md"
HEAD = ("seeds", "difference to `none`", "95 % interval", "better in", "time", "in words")

SECTION = """\
## {title}

{about}

```bash
{commands}
```

{found}
"""


def plan(name: str) -> dict[str, Any]:
    """Return a plan.

    Raises:
        ValueError: there is none of that name.
    """
    path = PLANS / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in PLANS.glob("*.toml"))
        raise ValueError(
            f"{name!r} is no study; choose from {', '.join(known)}{nearest(name, known)}"
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def run(name: str, folder: Path) -> int:
    """Make the runs of a study that are not finished, keep what came of them; return the status."""
    words = shlex.split(plan(name)["command"].replace("\\\n", ""))
    assert words[:2] == ["hf-sam", "compare"], f"{name}: its command must be hf-sam compare"
    place = ("--output_dir", str(folder))
    status = cli.main(["compare", *place, *words[2:]])
    if status == INTERRUPTED and list(folder.glob("runs/*/run.json")):
        cli.main(["report", *place, str(folder)])  # what is finished so far
    if (folder / "results.json").is_file():
        result = kept(machine.read(folder / "results.json"))
        found = without_times(result) if plan(name).get("busy") else result
        machine.write(machine.RESULTS / f"{name}.json", found)
    return status


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a comparison with the scores' curves only, and no folders."""
    for setting in results["settings"]:
        for one in setting["runs"]:
            one["scores"] = [value for _, value in one.pop("curves").get(results["metric"], [])]
    return dict(machine.without_folders({"kind": "study", **results}))


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Return the same without what is said about time."""
    for setting in result["settings"]:
        for one in (*setting["lines"], *setting["runs"]):
            one |= dict.fromkeys(one.keys() & {"time", "seconds", "seconds_per_update"})
        for said in (*setting["lines"], setting):
            name = "words" if "words" in said else "verdict"
            said[name] = re.sub(r", at [\d.]+ times the time", "", said[name])
    return result


def section(name: str, result: dict[str, Any] | None) -> str:
    """Return what a page says about a study, of which there may be no result."""
    own = plan(name)
    note = f"\n\n{own['note'].strip()}" if "note" in own else ""
    return SECTION.format(
        title=own["title"],
        about=own["about"].strip(),
        commands="\n".join(filter(None, [own.get("prepare"), own["command"].strip()])),
        found=_found(result) + note if result else "Not measured.",
    )


def _found(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    where = "; ".join(str(hardware[k]) for k in ("cpu", "accelerator") if k in hardware)
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    parts = [_table(result, setting) for setting in result["settings"]]
    if result["missing"]:
        parts.append(f"Not finished: {len(result['missing'])} of the planned runs.")
    return "\n\n".join([*parts, f"{where}; {versions}."])


def _table(result: dict[str, Any], setting: dict[str, Any]) -> str:
    rows = [_row(result, line) for line in setting["lines"]]
    head = ("method", result["title"], *HEAD)
    ways = [_on_the_way(result, setting, line["method"]) for line in setting["lines"]]
    if any(ways):
        head = (*head[:2], "on the way", *head[2:])
        rows = [[*row[:2], way, *row[2:]] for row, way in zip(rows, ways, strict=True)]
    table = markdown(head, rows)
    above = f"With {setting['name']}:\n\n" if setting["name"] else ""
    below = f"\n\n{setting['baseline']}" if setting.get("baseline") else ""
    return f"{above}{table}\n\n{setting['verdict']}{below}"


def _row(result: dict[str, Any], line: dict[str, Any]) -> list[str]:
    found, several = line["difference"], len(line["seeds"]) > 1
    cells = [f"`{line['method']}`", score(line["mean"], result)]
    cells[1] += f" ± {score(line['deviation'], result)}" if several else ""
    cells.append(str(len(line["seeds"])))
    time = "" if line["time"] is None else f"{line['time']:.2f}"
    if not found:
        return [*cells, "", "", "", time, ""]
    change, between = signed(found["mean"], result["unit"]), ""
    if len(found["values"]) > 1:
        change += f" ± {score(found['deviation'], result)}"
        low, high = (signed(found[end], result["unit"]) for end in ("low", "high"))
        between = f"{low} to {high}"
    better = f"{found['better']} of {len(found['values'])}"
    return [*cells, change, between, better, time, line["words"]]


def _on_the_way(result: dict[str, Any], setting: dict[str, Any], method: str) -> str:
    """Return the mean scores of the evaluations before the last."""
    own = [run.get("scores", [])[:-1] for run in setting["runs"] if run["method"] == method]
    means = [result["factor"] * statistics.fmean(at) for at in zip(*own, strict=False)]
    return ", ".join(score(mean, result) for mean in means)


def sections(results: dict[str, dict[str, Any]], page: str = README) -> list[str]:
    """Return the sections of the studies that a page shows, also of those without a result."""
    names = [path.stem for path in sorted(PLANS.glob("*.toml"))]
    mine = [name for name in names if plan(name).get("page", README) == page]
    return [section(name, results.get(name)) for name in mine]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies", description=__doc__, formatter_class=raw
    )
    parser.add_argument("name", help="of a plan in plans/, without .toml")
    parser.add_argument("--output_dir", type=Path, help="default: outputs/NAME")
    given = parser.parse_args(argv)
    return run(given.name, given.output_dir or Path("outputs") / given.name)


if __name__ == "__main__":
    sys.exit(main())
