# SPDX-License-Identifier: Apache-2.0
"""Law 15: what an update launches on an accelerator beside its passes has a budget.

It is counted on torch's meta device, where size costs nothing and whatever waits for a device
fails.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hf_sam import METHODS, Landscape, Progress, Vector
from hf_sam.landscape import HeadTap, Layer, Pair, Support
from tests.cases import CASES, Case

VIEWS = {"view", "split", "split_with_sizes", "slice", "detach", "alias", "unbind"}
NOTHING = {"empty", "empty_like", "promote_types"}
AT_ONCE = 100
"""Tensors in one launch of a foreach kernel, about."""


class Launches(TorchDispatchMode):
    """Counts kernels and views while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        many = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        if name in VIEWS:
            self.views += 1
        elif name.startswith("_foreach"):
            self.kernels[name] += math.ceil(len(many) / AT_ONCE)
        elif name not in NOTHING:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


def bert_base() -> list[nn.Parameter]:
    """Parameters of the shapes of BERT-base: 109 M weights in 194 tensors, two groups."""
    shapes: list[tuple[int, ...]] = [(30522, 768), (512, 768)]
    for _ in range(12):
        for rows, columns in [(768, 768)] * 4 + [(3072, 768), (768, 3072)]:
            shapes += [(rows, columns), (rows,)]
        shapes += [(768,)] * 4
    return [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]


def adapted_base() -> tuple[list[nn.Parameter], list[Layer]]:
    """Return 194 factors of adapters of BERT-base's matrices, and the layers."""
    params, layers = list[nn.Parameter](), []
    for i in range(97):
        params += [nn.Parameter(torch.empty(s, device="meta")) for s in ((8, 768), (768, 8))]
        base = nn.Linear(768, 768, device="meta").requires_grad_(False)
        layers.append(Layer(f"{i}", base, [Pair(2 * i, 2 * i + 1)]))
    return params, layers


def landscape(
    params: list[nn.Parameter], step: int, layers: list[Layer] | None = None
) -> Landscape:
    def backward(
        batch: Tensor, share: Any = 1.0, with_losses: bool = False, head: HeadTap | None = None
    ) -> Any:
        if head is not None:
            h, z = torch.empty(4, 768, device="meta"), torch.empty(4, 2, device="meta")
            head(h, z, torch.sum)
        with _disable_current_modes():  # what a pass does is not counted
            for p in params:
                p.grad = torch.empty_like(p)
            loss, losses = torch.empty((), device="meta"), torch.empty(len(batch), device="meta")
        return (loss, losses) if with_losses else loss

    return Landscape(
        params,
        [torch.empty(4, 2, device="meta")],
        backward,
        progress=Progress(step=step, total=4, lr_ratio=1 - step / 4, learning_rate=0.01),
        layers=lambda: layers or [],
        names=[f"{i}.weight" for i in range(len(params))],
        per_example=lambda batch: torch.empty(len(batch), device="meta"),
    )


def give_mask(params: list[nn.Parameter], method: Any) -> None:
    """Give a method a mask, as if it had been made in an earlier update."""
    masks = [torch.empty(p.shape, dtype=torch.bool, device="meta") for p in params]
    method.state.update(mask=Vector(masks), renewed=0)
    halves = [Support(m, m.numel() // 2) for m in masks]
    method.__dict__["_looked"] = [True] * len(masks), halves


def launches(case: Case) -> Launches:
    """Return the counts of that one of four updates that launches most."""
    method = METHODS[case.key](**case.options)
    params, layers = adapted_base() if case.adapters else (bert_base(), [])
    if case.mask_p is not None:
        give_mask(params, method)
    found = []
    for step in range(4):
        at = landscape(params, step if case.mask_p is None else 0, layers)
        with Launches() as counted:
            method(at)
        found.append(counted)
    return max(found, key=lambda one: one.kernels.total())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_launches_have_a_budget(case: Case) -> None:
    if case.launches is None:
        pytest.skip("its schedule needs the gradient's norm on the host")
    found = launches(case)
    assert found.kernels.total() <= case.launches, found.kernels.most_common(8)
    assert found.views // 194 <= case.views
