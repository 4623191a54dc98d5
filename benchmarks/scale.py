# SPDX-License-Identifier: Apache-2.0
"""The page docs/scaling.md: what `hf-sam estimate` computes, and worked out for many devices.

python -m benchmarks.scale
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from benchmarks.markdown import markdown
from hf_sam.estimate import costs
from hf_sam.estimate.command import DEVICES, GB, SIZES
from hf_sam.estimate.rehearsal import Passes

PAGE = Path(__file__).parents[1] / "docs/scaling.md"
SAM, COPIES = Passes(2.0, 2.0, 2.0, 16.0), {"descent": 1.0}
PLACES = (
    ("DDP, each rank ascends along its own gradient (the default of `sam`)", "ddp", True),
    ("DDP, one perturbation for all ranks (`sam_ascent_sync=global`)", "ddp", False),
    ("FSDP2", "fsdp2", False),
    ("ZeRO-1 and ZeRO-2, one perturbation for all ranks", "zero2", False),
)

TEXT = """\
# Many devices and large models

This page is worked out by the formulas of `hf-sam estimate`, not run; `python -m benchmarks.scale`
writes it. Tests hold the formulas against what two processes really send, counted by torch's
profiler under DDP, FSDP2 and ZeRO-2, and against measured time and memory of single devices.

## The formulas

```
{formulas}
```

What a method moves beside its passes is counted, operation by operation, as it runs on a small
stand-in: `sam` moves 16 copies of the weights in an update on an accelerator, more than AdamW, and
12 on a CPU. With `balance` = 2.3, the one number that is fitted to the CPU core on which they were
measured, the time agrees within 10 % with most measured cells; for the others
`tests/estimate/test_cells.py` gives the reason. The two defaults for GPUs are assumptions. Bytes
sent are those of a ring; what a network makes of them depends on its bandwidth and on how much of
the sending a backward hides.

## `sam` on n devices

bfloat16 by autocast, all weights trained. A cell: extra memory of a device; GB that it sends in an
update of `sam` (and of `none`). Extra memory is one copy of the trained weights in fp32; DeepSpeed
keeps 16 bits, and under FSDP2 each device holds its share. Activations, which SAM does not
multiply, optimizer states and the weights themselves are left out: 70 B weights fit no device.
"""


def page() -> str:
    """Return the page."""
    formulas = dedent(str(costs.__doc__).partition("\n\n")[2]).strip()
    return TEXT.format(formulas=formulas) + "".join(map("".join, sections()))


def sections() -> Iterator[tuple[str, ...]]:
    """Yield a heading and a table for each engine."""
    head = ("weights", *(f"{n} device{'s' if n > 1 else ''}" for n in DEVICES))
    for title, engine, local in PLACES:
        rows = [
            (f"{w / 1e9:g} B", *(cell(engine, w, gpus, local) for gpus in DEVICES)) for w in SIZES
        ]
        yield "\n### ", title, "\n\n", markdown(head, rows), "\n"


def cell(engine: str, weights: float, gpus: int, local: bool) -> str:
    """Return what SAM costs a device there."""
    setting = costs.Setting(weights, weights, gpus, engine, "bf16")
    found = costs.estimate(setting, SAM, COPIES, local)
    extra, own, plain = (short(b) for b in (found.memory["descent"], found.sent, found.sent_plain))
    return f"{extra} GB; {own} ({plain})"


def short(count: float) -> str:
    """Return bytes as GB in three digits."""
    return f"{count / GB:.3g}" if count < 1000 * GB else f"{count / GB:.0f}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
