# SPDX-License-Identifier: Apache-2.0
"""The page of `benchmarks.cifar10`: what its results say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.markdown import markdown, spread
from hf_sam import METHODS

Result = dict[str, Any]
PUBLISHED = {"none": (95.41, 3387), "sam": (96.52, 1717), "esam": (96.56, 2409)}
"""Du et al. 2022 (ESAM), table 1, CIFAR-10 with ResNet-18: accuracy in percent, images/s."""


def seconds_per_update(result: Result, method: str) -> float:
    """Return the median; the mean for methods whose updates are not all of the same passes."""
    row, drop = result["rows"][method], result["drop"]
    mixed = len(set(row["forward_examples"][drop:])) > 1
    return (statistics.fmean if mixed else statistics.median)(row["seconds"][drop:])


def images_per_second(result: Result, method: str) -> float:
    """Return training images per second."""
    return float(result["batch_size"] / seconds_per_update(result, method))


def waiting(result: Result, method: str) -> float:
    """Return the share of an update that goes into its batch."""
    row, drop = result["rows"][method], result["drop"]
    return sum(row["input_seconds"][drop:]) / sum(row["seconds"][drop:])


INTRODUCTION = """\
# CIFAR-10

What SAM and its variants bring to image classifiers trained from scratch, as measured. Every number
comes from a file in `results/`, with its command, versions, machine, seed and samples. This page is
written by `python -m benchmarks.cifar10 --table`; do not edit it. The recipes are in
[vision_scripts/recipes](../vision_scripts/recipes).

*Last* and *best* are accuracies in percent on test images after the last epoch and at the best one
(which takes the test labels to find), mean ± standard deviation over the seeds. *Images/s relative
to `none`* is of updates that took turns in one process. *Published* is ESAM's table 1 (ResNet-18,
200 epochs, all 50,000 images; relative: its images/s over its SGD's).
"""

EVIDENCE = (("esam", "--sam_options beta=0.6,gamma=1.0"),)
"""Runs without which the page does not say `ON_ESAM`."""

ON_ESAM = """\
Why `esam` is behind here: of its two savings it is the choice of examples that costs accuracy
(`beta=1.0,gamma=0.5`: all tensors, half of the examples), not the choice of tensors
(`beta=0.6,gamma=1.0`), which trains as `sam` does. Probably because the half of a batch whose loss
rises most is one-sided while the network knows little; ten epochs of 5,000 images may not leave
that phase. The published schedule has 200 times as many updates.
"""


def page(results: Iterable[Result]) -> str:
    """Return the page of these results."""
    found = list(results)
    runs = [r for r in found if r["kind"] == "cifar10"]
    speeds = [r for r in found if r["kind"] == "cifar10-speed"]
    parts = [INTRODUCTION, "## ResNet-18 on a GPU\n"]
    on_gpu = _sections([r for r in runs if _gpu(r)], [s for s in speeds if _gpu(s)])
    parts += on_gpu or ["Not measured.\n"]
    on_cpu = _sections([r for r in runs if not _gpu(r)], [s for s in speeds if not _gpu(s)])
    parts += ["## A small ResNet on a CPU\n", *(on_cpu or ["Not measured.\n"])]
    parts += [ON_ESAM] if any(_kind(r) in EVIDENCE for r in runs if r.get("small")) else []
    return "\n".join(parts)


def _gpu(result: Result) -> bool:
    return "gpu" in result["hardware"]


def _setting(result: Result) -> tuple[int, int, int, int]:
    epochs = len(result["history"]["eval_accuracy"])
    return result["parameters"], result["train_images"], result["test_images"], epochs


def _sections(runs: list[Result], speeds: list[Result]) -> list[str]:
    settings = sorted({_setting(run) for run in runs}, reverse=True)
    return list(_texts(settings, runs, speeds))


def _texts(settings: list[Any], runs: list[Result], speeds: list[Result]) -> Iterator[str]:
    for setting in settings:
        parameters, train, test, epochs = setting
        own = [run for run in runs if _setting(run) == setting]
        timed = next((s for s in speeds if s["parameters"] == parameters), None)
        yield (
            f"{parameters:,} weights, {train:,} training and {test:,} test images, {epochs} epochs."
            f" {_machine(own[0])}\n"
        )
        yield _table(own, timed) + "\n"
        commands = dict.fromkeys(run["command"] for run in own)
        timing = [timed["command"]] if timed is not None else []
        yield "```bash\n" + "\n".join([*commands, *timing]) + "\n```\n"
        if timed is not None:
            yield _input_line(timed)


def _machine(run: Result) -> str:
    hardware, versions = run["hardware"], run["versions"]
    where = hardware.get("gpu") or f"{hardware['cpu']}, {hardware['threads']} thread(s)"
    return f"{where}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _input_line(timed: Result) -> str:
    share, plain = waiting(timed, "none"), images_per_second(timed, "none")
    return (
        f"`none` makes {plain:.0f} images/s (median of {timed['updates'] - timed['drop']} updates "
        f"of {timed['batch_size']}) and waits for its batches {100 * share:.1f} % of the time.\n"
    )


def _table(runs: list[Result], timed: Result | None) -> str:
    head = ["method", "last", "best", "seeds", "images/s relative to `none`", "max memory (MB)"]
    if _gpu(runs[0]):
        head += ["published accuracy", "published relative"]
    order = list(METHODS)
    kinds = sorted({_kind(r) for r in runs}, key=lambda kind: (order.index(kind[0]), kind[1]))
    rows = [_row(kind, [r for r in runs if _kind(r) == kind], timed) for kind in kinds]
    return markdown(head, rows)


def _kind(run: Result) -> tuple[str, str]:
    """Return the method, and what was given beside its recipe."""
    return run["method"], run.get("options", "")


def _row(kind: tuple[str, str], runs: list[Result], timed: Result | None) -> list[str]:
    method, options = kind
    relative = ""
    if timed is not None and method in timed["rows"] and not options:
        plain = images_per_second(timed, "none")
        relative = f"{images_per_second(timed, method) / plain:.2f}"
    row = [
        f"`{method}`" + (f", `{options}`" if options else ""),
        spread([run["accuracy"] for run in runs], 2),
        spread([run["best_accuracy"] for run in runs], 2),
        str(len(runs)),
        relative,
        f"{max(run['all_results']['train max memory (MB)'] for run in runs):.0f}",
    ]
    if not _gpu(runs[0]):
        return row
    accuracy, images = PUBLISHED.get("" if options else method, (None, None))
    return row + [
        "" if accuracy is None else f"{accuracy:.2f}",
        "" if images is None else f"{images / PUBLISHED['none'][1]:.2f}",
    ]
