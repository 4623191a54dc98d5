# SPDX-License-Identifier: Apache-2.0
"""From passes and P to one device: time, memory, and the bytes that it sends in an update.

A device computes `balance` FLOPs in the time in which it reads or writes a byte. With W bytes of
weights, G bytes of gradients and F FLOPs of a forward over the batch, an update takes the time of

    F (forwards + c backwards) / balance    computing; c = 1 + the share of the weights trained
    gradients (2 W + G)                     a pass reads weights twice, writes gradients
    moved P                                 what the method's walks over the weights read and write
    10 P                                    clipping and AdamW: 7 numbers read, 3 written, of each

bytes moved, and `none` the same with one forward, one backward and nothing moved. The first line is
all that counts for a large batch; the others do not shrink with it. Communication comes on top.

With n devices, W bytes of weights and G bytes of gradients, a device sends in a ring

    all-gather, reduce-scatter   (n - 1)/n of the bytes
    all-reduce                   2 (n - 1)/n

and an update with p gradients of which a are averaged over ranks needs

    DDP          a all-reduces of G
    FSDP2        p times: two all-gathers of W (forward, backward), a reduce-scatter of G
    ZeRO-1, -2   plain: an all-reduce of G, an all-gather of the updated weights
                 SAM: the same to hand the update over, and a all-reduces of G

a is p where ranks share one perturbation (global ascent) and 1 where each perturbs with its own
gradient (local ascent, under DDP and DeepSpeed, for methods that allow it). P is G under DDP and
DeepSpeed, G/n under FSDP2: there whatever a method keeps is sharded as the weights are. FSDP2
gathers modules that it does not wrap by themselves once in a pass, which sends less. DeepSpeed sums
whole buckets on all ranks, at both stages, unless `use_multi_rank_bucket_allreduce` is false.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rehearsal import Passes

HALF = ("bf16", "fp16")
BALANCE = {"bf16": 100.0, "fp16": 100.0, "fp32": 10.0}
"""FLOPs per byte of a GPU, about half of what data sheets promise: an assumption, not measured."""
PLAIN = Passes(1.0, 1.0, 1.0, 0.0)
OPTIMIZER = 10
"""Numbers that clipping and AdamW read and write for each weight."""
ENGINES = ("one", "ddp", "fsdp2", "zero1", "zero2")
FULL, SHORT = 4, 2
"""Bytes of a number in fp32, and in 16 bits."""


@dataclass(frozen=True)
class Setting:
    """Where a model trains.

    Attributes:
        weights: parameters of the model.
        trainable: those that are trained, fewer with LoRA.
        gpus: devices.
        engine: one of `ENGINES`.
        precision: "fp32", "bf16" or "fp16", as autocast; DeepSpeed stores 16 bits.
        flops: of a forward over the batch of a device.
        balance: FLOPs that a device computes while it moves a byte; 0 for that of a GPU.
    """

    weights: float
    trainable: float
    gpus: int = 1
    engine: str = "ddp"
    precision: str = "bf16"
    flops: float = 0.0
    balance: float = 0.0

    @property
    def stored(self) -> int:
        """Bytes of a number of what a method keeps: of gradients and snapshots."""
        short = self.engine.startswith("zero") and self.precision in HALF
        return SHORT if short else FULL

    @property
    def sent(self) -> int:
        """Bytes of a number that devices send."""
        short = self.engine != "ddp" and self.precision in HALF
        return SHORT if short else FULL

    @property
    def p(self) -> float:
        """P on one device, in bytes."""
        shards = self.gpus if self.engine == "fsdp2" else 1
        return self.trainable * self.stored / shards


@dataclass(frozen=True)
class Estimate:
    """What a method costs on one device.

    Attributes:
        memory: phase -> bytes beyond the peak of `none`.
        sent: bytes that the device sends in an update.
        sent_plain: the same with `none`.
    """

    memory: dict[str, float]
    sent: float
    sent_plain: float


def estimate(setting: Setting, passes: Passes, memory: dict[str, float], local: bool) -> Estimate:
    """Return what a method costs there.

    Args:
        setting: where the model trains.
        passes: of a mean update.
        memory: phase -> P.
        local: whether ranks ascend each along its own gradient.
    """
    averaged = 1.0 if local else passes.gradients
    return Estimate(
        memory={phase: setting.p * copies for phase, copies in memory.items()},
        sent=sent(setting, passes.gradients, averaged, plain=False),
        sent_plain=sent(setting, 1.0, 1.0, plain=True),
    )


def time(setting: Setting, passes: Passes) -> float:
    """Return the time of an update relative to `none`, without communication.

    Args:
        setting: where the model trains, with the FLOPs of its batch.
        passes: of a mean update, and what is moved beside them.
    """
    return moved(setting, passes) / moved(setting, PLAIN)


def moved(setting: Setting, passes: Passes) -> float:
    """Return the time of an update, as the bytes that the device could move in it."""
    backward = 1 + setting.trainable / setting.weights
    flops = setting.flops * (passes.forwards + backward * passes.backwards)
    of_pass = FULL * (2 * setting.weights + setting.trainable)
    sharded = setting.gpus if setting.engine not in ("one", "ddp") else 1
    optimizer = OPTIMIZER * FULL * setting.trainable / sharded
    computed = flops / (setting.balance or BALANCE[setting.precision])
    return computed + passes.gradients * of_pass + passes.moved * setting.p + optimizer


def sent(setting: Setting, gradients: float, averaged: float, plain: bool) -> float:
    """Return the bytes that one device sends in an update."""
    if setting.engine == "one" or setting.gpus == 1:
        return 0.0
    ring = (setting.gpus - 1) / setting.gpus * setting.sent
    weights, trained = setting.weights * ring, setting.trainable * ring
    if setting.engine == "ddp":
        return 2 * averaged * trained
    if setting.engine == "fsdp2":
        return gradients * (2 * weights + trained)
    handed = 2 * trained + trained  # gradients summed, updated weights to all
    return handed if plain else handed + 2 * averaged * trained
