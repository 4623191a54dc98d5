# SPDX-License-Identifier: Apache-2.0
"""A long run holds no more at its end than at its beginning, for every row of `cases.py`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import TrainerCallback

from tests.cases import CASES, Case
from tests.toys import MODELS, examples, train

UPDATES, EVERY = 5000, 1000


class Watch(TrainerCallback):
    """Counts live tensors, resident memory in bytes and open files, once it is warm."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % EVERY == 0:
            gc.collect()
            tensors = sum(isinstance(one, torch.Tensor) for one in gc.get_objects())
            process = psutil.Process()
            self.found.append((tensors, process.memory_info().rss, process.num_fds()))


class Tiny(torch.nn.Module):
    """Two layers, so that an update takes next to no time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the logits."""
        logits = self.second(torch.tanh(self.first(x)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_long_run_leaks_nothing(case: Case, tmp_path: Path) -> None:
    """5,000 updates: tensors, memory and open files stay within one per cent."""
    watch, updates = Watch(), UPDATES
    settings: dict[str, Any] = {"built": Tiny()}
    settings["data"] = [{"x": torch.randn(4), "labels": i % 2} for i in range(64)]
    if case.adapters or case.key == "head_sam":  # which need a model of transformers
        model = case.toy("bert")
        settings = {"built": MODELS[model](), "data": examples(model)}
    train(
        tmp_path,
        max_steps=updates,
        logging_steps=500,
        sam=case.key,
        sam_options=case.options or None,
        callbacks=[watch],
        **settings,
    )
    first, last = watch.found[0], watch.found[-1]
    assert len(watch.found) == updates // EVERY
    for what, before, after in zip(("tensors", "memory", "files"), first, last, strict=True):
        assert after <= 1.01 * before, f"{what}: {watch.found}"
