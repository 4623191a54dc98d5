# SPDX-License-Identifier: Apache-2.0
"""One row per method: what the laws need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WITH_ADAPTERS = {"bert": "lora", "llama": "lora_llama", "resnet": "lora_resnet", "t5": "lora_t5"}
"""The toy models of `toys.MODELS`, and the same ones with LoRA adapters."""


@dataclass(frozen=True)
class Case:
    """A method and what it promises.

    Attributes:
        key: in `METHODS`.
        passes: forward-backward passes of update number `step` (from 0) of `total`.
        options: beside rho, where the law should not take the defaults.
        extra_p: peak memory beyond the plain Trainer, in copies of the trainable parameters.
        mask_p: the same for an update that makes a new mask.
        launches: kernels beside the passes of an update of BERT-base on an accelerator, at most;
            None where the host has to wait for a number, which the count does not allow.
        views: views beside the passes, per parameter, at most.
        rho_zero: what makes it the plain Trainer (law 2).
        rho_zero_exact: bit for bit, or to 1e-6 for a method that is honestly inexact.
        cuts: its passes see parts of micro-batches, whose dropout masks and batch statistics
            differ.
        batch_coupled: draws or selects examples, so accumulation is visible (law 3).
        stateful: carries state from update to update.
        per_example: needs per-example losses.
        earlier: perturbs along what its earlier updates found, so that its first one is plain.
        adapters: works on LoRA adapters, so it runs on the toys that have some.
        moves: moves weights itself, in proportion to the learning rate, beside its update.
        blind: numbers of the passes whose loss takes no part in the update, so that an overflow of
            it is none: `functional_sam` keeps the slopes of its first pass (law 12).
        one_pass: perturbs though it makes one pass.
        layer_p: memory beside, in copies of the largest layer's weight.
        head: stands behind the output head, whose gradient it holds where micro-batches share a
            perturbation.
    """

    key: str
    passes: Callable[[int, int], int]
    options: dict[str, Any] = field(default_factory=dict)
    extra_p: float = 1.0
    mask_p: float | None = None
    launches: int | None = 60
    views: int = 4
    rho_zero: dict[str, Any] = field(default_factory=lambda: {"rho": 0.0})
    rho_zero_exact: bool = True
    cuts: bool = False
    batch_coupled: bool = False
    stateful: bool = False
    per_example: bool = False
    earlier: bool = False
    adapters: bool = False
    moves: bool = False
    blind: tuple[int, ...] = ()
    one_pass: bool = False
    layer_p: float = 0.0
    head: bool = False

    def toy(self, model: str) -> str:
        """Return the toy model on which the row runs where others run on `model`."""
        return WITH_ADAPTERS.get(model, model) if self.adapters else model

    def __str__(self) -> str:
        """Return the row's name in test reports."""
        return self.key


CASES = [
    Case("sam", passes=lambda step, total: 2),
    Case("asam", passes=lambda step, total: 2, launches=84),
    Case(  # four examples at every new mask, of which the toy has one per epoch of five updates
        "ssam_f",
        passes=lambda step, total: 2 if step % 5 else 6,
        options={"fisher_samples": 4},
        extra_p=0.75,
        mask_p=1.25,
        launches=150,
        views=7,
        stateful=True,
    ),
    Case(
        "ssam_d",
        passes=lambda step, total: 2,
        extra_p=0.75,
        mask_p=0.8,
        launches=150,
        views=7,
        stateful=True,
    ),
    Case(  # two backward passes per group, each of half the examples
        "msam",
        passes=lambda step, total: 4,
        options={"micro_batches": 2},
        cuts=True,
        extra_p=2.0,
        launches=4 * 60,
        views=8,
        rho_zero_exact=False,
    ),
    Case(
        "ss_sam",
        passes=lambda step, total: 2 if step / total >= 0.5 else 1,
        options={"schedule": "piecewise"},
        launches=62,  # with the coin, which is tossed on the CPU
    ),
    Case(
        "esam",
        passes=lambda step, total: 2,
        launches=100,
        rho_zero={"rho": 0.0, "gamma": 1.0},
        batch_coupled=True,
        per_example=True,
    ),
    Case(
        "rsam",
        views=9,
        passes=lambda step, total: 2,
        launches=2 * 194 + 60,
        rho_zero={"rho": 0.0, "sigma": 0.0},
    ),
    Case(
        "looksam",
        passes=lambda step, total: 1 if step % 5 else 2,
        extra_p=2.0,
        launches=120,
        stateful=True,
    ),
    Case("friendly_sam", passes=lambda step, total: 2, extra_p=2.0, launches=120, stateful=True),
    Case("stable_sam", passes=lambda step, total: 2, launches=70, rho_zero_exact=False),
    Case(
        "bilateral_sam",
        passes=lambda step, total: 3,
        extra_p=2.0,
        launches=120,
        rho_zero={"rho": 0.0, "rho_min": 0.0},
    ),
    Case("late_sam", passes=lambda step, total: 2 if step / total >= 0.75 else 1),
    Case(  # the tests' learning rate falls from the first update on
        "tail_sam",
        passes=lambda step, total: 2 if step else 1,
        rho_zero={"rho": 0.0, "fraction": 1.0},
        batch_coupled=True,
    ),
    Case(
        "momentum_sam",
        passes=lambda step, total: 1,
        extra_p=2.0,
        launches=132,
        stateful=True,
        one_pass=True,
        earlier=True,
    ),
    Case(
        "previous_sam",
        passes=lambda step, total: 1,
        launches=132,
        stateful=True,
        one_pass=True,
        earlier=True,
    ),
    Case(  # perturbs always at these thresholds
        "ae_sam",
        passes=lambda step, total: 2,
        options={"lambda_1": -50.0, "lambda_2": -50.0},
        launches=None,
        stateful=True,
    ),
    Case(
        "wsam",
        passes=lambda step, total: 2,
        rho_zero={"rho": 0.0, "gamma": 0.5},
        extra_p=2.0,
        launches=132,
    ),
    Case(
        "gsam",
        passes=lambda step, total: 2,
        rho_zero={"rho": 0.0, "alpha": 0.0},
        extra_p=2.0,
        launches=120,
    ),
    Case("vasso", passes=lambda step, total: 2, extra_p=2.0, launches=120, stateful=True),
    Case(
        "bar",
        passes=lambda step, total: 1,
        extra_p=0.0,
        rho_zero={"mu": 0.0},
        adapters=True,
        moves=True,
        one_pass=True,
    ),
    Case("head_sam", passes=lambda step, total: 1, extra_p=0.0, one_pass=True, head=True),
    Case("functional_sam", passes=lambda step, total: 2, blind=(1,)),
    Case(
        "bi_lora",
        passes=lambda step, total: 1,
        options={"rank": 2},
        extra_p=4.0,
        launches=2000,
        stateful=True,
        adapters=True,
        one_pass=True,
    ),
    Case(
        "flat_lora",
        passes=lambda step, total: 1,
        options={"sigma": 0.2},
        extra_p=0.0,
        rho_zero={"sigma": 0.0},
        layer_p=1.0,
        launches=2400,
        adapters=True,
        one_pass=True,
    ),
]


def rows(*models: str) -> list[tuple[Case, str]]:
    """Return the pairs (case, toy model) to try, each once, for toys of these kinds."""
    return [(c, toy) for c in CASES for toy in dict.fromkeys(map(c.toy, models))]


def name_of(row: tuple[Case, str]) -> str:
    """Return the name in test reports of a pair of `rows`."""
    return f"{row[0]}-{row[1]}"
