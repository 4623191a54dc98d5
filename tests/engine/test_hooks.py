# SPDX-License-Identifier: Apache-2.0
"""Hooks that use up a gradient inside backward are refused; others are named."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_sam.host.hooks import check_hooks
from tests.toys import bert, make_trainer

LINEAR = nn.Linear(1, 1)
OPTIMIZERS = {LINEAR.weight: torch.optim.SGD([LINEAR.weight], lr=0.1)}


def by_name(param: Any) -> None:
    OPTIMIZERS[param].step()


def stepping() -> Any:
    own = OPTIMIZERS[LINEAR.weight]

    def hook(param: Any) -> None:
        own.step()

    return hook


def frees(param: Any) -> None:
    param.grad = None


def helped(param: Any) -> None:
    by_name(param)


class Stepper:
    def __init__(self) -> None:
        self.own = list(OPTIMIZERS.values())

    def __call__(self, param: Any) -> None:
        for one in self.own:
            one.zero_grad()

    def method(self, param: Any) -> None:
        self.own[0].step()


@pytest.mark.parametrize(
    "hook",
    [
        *(by_name, stepping(), frees, helped, Stepper(), Stepper().method),
        *(functools.partial(by_name), lambda p: OPTIMIZERS[p].step()),
    ],
)
def test_hooks_that_use_up_a_gradient_are_refused(hook: Any) -> None:
    model = nn.Linear(1, 1)
    model.bias.register_post_accumulate_grad_hook(hook)
    with pytest.raises(NotImplementedError, match="register_post_accumulate_grad_hook on bias"):
        check_hooks(model.named_parameters())
    model.bias.requires_grad_(False)
    check_hooks(model.named_parameters())


def test_hooks_that_look_are_named(caplog: Any) -> None:
    model, seen = nn.Linear(1, 1), {"step": 0}

    def look(param: Any) -> None:
        seen["step"] += int(param.grad.norm() > 0)

    model.weight.register_post_accumulate_grad_hook(look)
    model.weight.register_hook(lambda grad: None)
    check_hooks(model.named_parameters())
    (record,) = caplog.records
    assert "on weight runs in every pass" in record.getMessage()


def test_they_are_looked_for_when_training_starts(tmp_path: Path) -> None:
    model = bert()
    model.classifier.weight.register_post_accumulate_grad_hook(frees)
    trainer = make_trainer(tmp_path, built=model, sam="sam")
    with pytest.raises(NotImplementedError, match="on classifier.weight"):
        trainer.train()
