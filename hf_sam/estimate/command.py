# SPDX-License-Identifier: Apache-2.0
"""`hf-sam estimate` on the command line."""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from ..methods import Method
    from .costs import Estimate, Setting
    from .rehearsal import Passes

ABOUT = """\
What a method will cost, before anything is trained: passes and time relative to none, extra memory
of a device by phase, bytes that a device sends in an update. The method's own code is run on a
small stand-in, which takes seconds; nothing is downloaded but the model's configuration, from
which the FLOPs of a pass are counted.

  hf-sam estimate --sam looksam --model_name_or_path bert-base-cased --gpus 8 --engine ddp
  hf-sam estimate --sam sam:ascent_fraction=0.25 --parameters 7B --trainable 20M --engine fsdp2

Time leaves out communication; memory leaves out activations, which SAM does not multiply. What is
moved beside the passes does not shrink with the batch: its share depends on how many FLOPs a device
computes while it moves a byte. The formulas: docs/scaling.md.
"""
BATCH = "examples, x tokens, of a device (default: 32x128); an image has the configuration's size"
PER_BYTE = """\
FLOPs that a device computes while it moves a byte (default: 100 in 16 bits and 10 in fp32, about
half of what data sheets of GPUs promise; the CPU core of our measurements: 2.3)
"""
ASCENTS = ("auto", "global", "local")
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
SIZES = (0.1e9, 1e9, 7e9, 70e9)
DEVICES = (1, 8, 64, 512)
MB, GB = 2**20, 1e9


def add_command(commands: Any) -> None:
    """Add the command to the parser of `hf-sam`."""
    parser = commands.add_parser(
        "estimate",
        help="time, memory and communication of a method, from the configuration alone",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sam", required=True, metavar="METHOD", help="as in hf-sam compare: sam:rho=0.01")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--model_name_or_path", help="model or configuration, folder or Hub id")
    size.add_argument("--parameters", type=number, metavar="N", help="weights instead, as in 7B")
    add("--trainable", type=number, metavar="N", help="those that are trained (default: all)")
    add("--engine", default="ddp", help="one, ddp, fsdp2, zero1 or zero2 (default: ddp)")
    add("--gpus", type=int, default=1, metavar="N", help="devices (default: 1)")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="bf16", help="default: bf16")
    add("--batch", type=batch, default=(32, 128), metavar="32x128", help=BATCH)
    add("--balance", type=number, default=0.0, metavar="N", help=PER_BYTE)
    add("--ascent", choices=ASCENTS, default="auto", help="--sam_ascent_sync (default: auto)")
    add("--scale", action="store_true", help="the same for other sizes and numbers of devices")
    parser.set_defaults(run=run)


def number(text: str) -> float:
    """Return the number of a text such as `7B` or `350M`."""
    unit = text[-1:].upper() if text[-1:].isalpha() else ""
    try:
        found = float(text[: len(text) - len(unit)]) * UNITS[unit]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 350M or 7B") from None
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be above zero")
    return found


def batch(text: str) -> tuple[int, int]:
    """Return the examples and tokens of `32x128`; `32` has 128 tokens."""
    words = text.lower().split("x")
    if not all(word.isdecimal() and int(word) > 0 for word in words) or len(words) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not EXAMPLES or EXAMPLESxTOKENS, as 32x128")
    return int(words[0]), int(words[1]) if len(words) > 1 else 128


def run(args: argparse.Namespace) -> None:
    """Print the estimate.

    Raises:
        ValueError: a method, engine or number that cannot be; with the reason for what is refused.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is loaded: its profiler chats
    from rich.console import Console

    from ..arguments import by_name
    from ..sweeps import GROUPED, forced
    from . import rehearsal
    from .costs import Setting, estimate

    method = the_method(args.sam)
    check(args)
    weights, flops = size_of(args)
    trainable = args.trainable or weights
    if trainable > weights:
        raise ValueError(f"--trainable {trainable:g}: the model has {weights:g} weights in all")
    place = (args.gpus, args.engine, args.precision)
    setting = Setting(weights, trainable, *place, flops, args.balance)
    local = is_local(method, args)
    with forced(GROUPED):  # as an accelerator walks over weights; a CPU moves a little less
        passes = rehearsal.passes(method, args.batch[0])
    memory = rehearsal.memory(lambda: the_method(args.sam), lambda: by_name("none", None, {}))
    console = Console()
    console.print(table(setting, passes, estimate(setting, passes, memory, local), local))
    if args.scale:
        console.print(scale(setting, passes, memory, local))


def the_method(text: str) -> Method:
    """Return the method of a text such as `sam:rho=0.01,when=after:0.7`.

    Raises:
        ValueError: it is none.
    """
    from types import SimpleNamespace

    from ..arguments import build_method
    from ..compare.rows import parse_rows

    rows = parse_rows(text if text == "none" else f"none,{text}")
    if len(rows) > 2 or rows[-1].others:
        raise ValueError(f"--sam {text}: give one method with its own options")
    values: dict[str, Any] = rows[-1].arguments
    return build_method(SimpleNamespace(**values))


def check(args: argparse.Namespace) -> None:
    """Refuse what hf_sam refuses when it trains.

    Raises:
        ValueError: the reason, and what to use instead.
    """
    from .costs import ENGINES

    reasons = {
        "zero3": "its weights are there inside a forward only; use zero2 or fsdp2",
        "fsdp1": "it flattens the weights of a module into one; use fsdp2",
        "dp": "its replicas are made anew in every pass; use ddp",
    }
    if args.engine in reasons:
        raise ValueError(f"--engine {args.engine} is refused: {reasons[args.engine]}")
    if args.engine not in ENGINES:
        raise ValueError(f"--engine {args.engine}: choose from {', '.join(ENGINES)}")
    if args.gpus < 1 or (args.engine == "one" and args.gpus > 1):
        raise ValueError(f"--gpus {args.gpus} --engine {args.engine}: from 1, and 1 for 'one'")
    if args.ascent == "local" and args.engine == "fsdp2":
        raise ValueError(
            "--ascent local is refused under fsdp2: every backward averages over ranks, so none "
            "has a gradient of its own; use auto or global"
        )


def is_local(method: Method, args: argparse.Namespace) -> bool:
    """Return whether ranks ascend along their own gradients, as `sam_ascent_sync` decides.

    Raises:
        ValueError: they cannot with this method.
    """
    if args.ascent == "local" and not method.local_ascent:
        raise ValueError(
            f"--ascent local is refused with {args.sam}: its update needs more than the descent "
            "gradient, and ranks would drift apart; use auto or global"
        )
    if args.engine in ("one", "fsdp2") or args.ascent == "global":
        return False
    # auto is local under DDP alone
    return method.local_ascent and (args.engine == "ddp" or args.ascent == "local")


def size_of(args: argparse.Namespace) -> tuple[float, float]:
    """Return how many weights the model has, and the FLOPs of a forward over the batch."""
    from .work import flops_of

    if args.parameters:
        return args.parameters, 2 * args.parameters * math.prod(args.batch)
    model = model_of(args.model_name_or_path)
    return float(sum(p.numel() for p in model.parameters())), flops_of(model, *args.batch)


def model_of(name: str) -> torch.nn.Module:
    """Return a model without weights, from its configuration on the meta device.

    Raises:
        ValueError: there is no such configuration.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"--model_name_or_path {name}: no configuration ({first}); or give --parameters"
        ) from None
    named = (config.architectures or [""])[0]
    kind: Any = getattr(transformers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        kind = transformers.AutoModel.from_config  # the file may name anything
    with torch.device("meta"):
        model: torch.nn.Module = kind(config)
    return model


def table(setting: Setting, passes: Passes, found: Estimate, local: bool) -> Table:
    """Return the estimate as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .costs import time

    shown = Table("", "this method", "none", box=SIMPLE_HEAD, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    shown.add_row("examples forwarded, per example", f"{passes.forwards:.2f}", "1.00")
    shown.add_row("examples gone backward through", f"{passes.backwards:.2f}", "1.00")
    shown.add_row("moved beside passes, in copies of P", f"{passes.moved:.1f}", "0.0")
    shown.add_row("time", f"{time(setting, passes):.2f}", "1.00")
    for phase, extra in found.memory.items():
        shown.add_row(f"extra memory a device, {phase} (MB)", f"{extra / MB:.0f}", "0")
    ascent = "local" if local else "global"
    shown.add_row(
        f"sent by a device (GB), {ascent} ascent",
        f"{found.sent / GB:.3f}",
        f"{found.sent_plain / GB:.3f}",
    )
    return shown


def scale(setting: Setting, passes: Passes, memory: dict[str, float], local: bool) -> Table:
    """Return the worked-out table of other sizes and numbers of devices."""
    from dataclasses import replace

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from .costs import estimate

    title = f"{setting.engine}, {setting.precision}: extra GB of a device; GB sent (none)"
    shown = Table("weights", title=title, box=SIMPLE_HEAD, pad_edge=False)
    for gpus in DEVICES:
        shown.add_column(f"{gpus} device{'s' if gpus > 1 else ''}", justify="right")
    share = setting.trainable / setting.weights
    for weights in SIZES:
        cells = []
        for gpus in DEVICES:
            place = replace(setting, weights=weights, trainable=share * weights, gpus=gpus)
            found = estimate(place, passes, memory, local)
            peak = max(found.memory.values(), default=0.0)
            cells.append(f"{peak / GB:.3g}; {found.sent / GB:.3g} ({found.sent_plain / GB:.3g})")
        shown.add_row(f"{weights / 1e9:g} B", *cells)
    return shown
