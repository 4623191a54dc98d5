# SPDX-License-Identifier: Apache-2.0
"""What our methods are compared with: plain training loops without Trainer, that take turns too.

`loop:sam` is the SAM that one writes by hand from the formula, tensor by tensor; `peer:CLASS` is a
class of pytorch-optimizer (`pip install 'hf-sam[bench]'`), used as its page says. Optimizer,
schedule, clipping and precision are those of the trainer beside which they run.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer, get_scheduler, set_seed

from benchmarks.interleave import Samples, Stopwatch
from benchmarks.problem import Inputs, Problem
from hf_sam.landscape.data import examples
from hf_sam.parts.base import nearest

EPSILON = 1e-12


@dataclass(frozen=True)
class Rival:
    """A loop, and which of our rows does the same.

    Attributes:
        beside: our row.
        options: of the class of pytorch-optimizer, so that both do the same.
        passes: of an update.
    """

    beside: str
    options: dict[str, Any]
    passes: int = 2


RIVALS = {
    "loop:sam": Rival("sam", {"rho": 0.05}),
    "peer:SAM": Rival("sam", {"rho": 0.05}),
    "peer:LookSAM": Rival("looksam", {"rho": 0.05, "k": 5, "alpha": 0.7}),
    "peer:FriendlySAM": Rival("friendly_sam", {"rho": 0.05, "sigma": 1.0, "lmbda": 0.9}),
}


def rival(name: str) -> Rival:
    """Return a rival by its name.

    Raises:
        ValueError: there is no such rival.
    """
    if name not in RIVALS:
        raise ValueError(
            f"{name!r} is no rival; choose from {', '.join(RIVALS)}" + nearest(name, RIVALS)
        )
    return RIVALS[name]


def installed(name: str) -> bool:
    """Whether what a rival needs is there."""
    return not name.startswith("peer:") or importlib.util.find_spec("pytorch_optimizer") is not None


class Loop:
    """A training loop that makes one update at a time, and samples it as `Recorder` does.

    Attributes:
        samples: one entry per update.
        device: where it computes.
        model: a copy of the problem's.

    Args:
        problem: what is trained.
        name: of a rival.
        updates: of the whole run.
    """

    def __init__(self, problem: Problem, name: str, updates: int) -> None:
        self.samples = Samples()
        self._problem = problem
        self._args = problem.plain
        self.device = problem.training.device
        set_seed(self._args.seed)
        self.model = problem.copy_of_model().to(self.device).train()
        self._params = [p for p in self.model.parameters() if p.requires_grad]
        self._watch = Stopwatch(self.device)
        self._optimizer, inner = self._optimizers(name)
        self._scheduler = get_scheduler(self._args.lr_scheduler_type, inner, 0, updates)
        self._update = self._by_hand if name == "loop:sam" else self._by_peer
        self._rho = rival(name).options["rho"]
        self._batches = self._read(updates)

    def _optimizers(self, name: str) -> tuple[Any, torch.optim.Optimizer]:
        """Return what steps, and the optimizer inside it whose learning rate is scheduled."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self._args)
        options |= {"weight_decay": self._args.weight_decay}
        if name == "loop:sam":
            optimizer = kind(self._params, **options)
            return optimizer, optimizer
        import pytorch_optimizer

        around = getattr(pytorch_optimizer, name.removeprefix("peer:"))
        wrapped = around(self._params, base_optimizer=kind, **rival(name).options, **options)
        return wrapped, wrapped.base_optimizer

    def _read(self, updates: int) -> Iterator[Inputs]:
        problem, size = self._problem, self._problem.training.batch_size
        for start in range(0, updates * size, size):
            batch = problem.collate([problem.data[i] for i in range(start, start + size)])
            yield {name: value.to(self.device) for name, value in batch.items()}

    def step(self) -> None:
        """Make one update and sample it."""
        self._wait()
        self._forwards = self._seen = 0
        cpu, clock = time.process_time(), time.perf_counter()
        loss = self._update(next(self._batches))
        self._scheduler.step()
        self._wait()
        taken = self.samples
        taken.seconds.append(round(time.perf_counter() - clock, 6))
        if self.device.type == "cpu":
            taken.cpu_seconds.append(round(time.process_time() - cpu, 6))
        taken.forwards.append(self._forwards)
        taken.backwards.append(self._forwards)
        taken.forward_examples.append(self._seen)
        taken.backward_examples.append(self._seen)
        taken.pass_seconds.append(round(self._watch.drain(), 6))
        taken.losses.append(float(loss))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _pass(self, batch: Inputs) -> Tensor:
        """Run forward and backward."""
        self._watch.start()
        with self._autocast():
            loss = self.model(**batch).loss
        loss.backward()
        self._watch.stop()
        self._forwards += 1
        self._seen += examples(batch)
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._args.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _clip(self) -> None:
        clip_grad_norm_(self._params, self._args.max_grad_norm)

    def _by_hand(self, batch: Inputs) -> Tensor:
        """SAM from the formula: eps = rho g / |g|, the gradient at w + eps, back, step."""
        loss = self._pass(batch)
        with torch.no_grad():
            norms = [p.grad.norm() for p in self._params if p.grad is not None]
            scale = self._rho / (torch.stack(norms).norm() + EPSILON)
            steps = []
            for p in self._params:
                if p.grad is not None:
                    eps = p.grad * scale
                    p.add_(eps)
                    steps.append((p, eps))
        self._optimizer.zero_grad()
        self._pass(batch)
        with torch.no_grad():
            for p, eps in steps:
                p.sub_(eps)
        self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def _by_peer(self, batch: Inputs) -> Tensor:
        """As the examples in pytorch-optimizer's docstrings, with clipping in the closure."""

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            loss = self._pass(batch)
            self._clip()
            return loss

        loss = self._pass(batch)
        self._optimizer.step(closure)
        self._optimizer.zero_grad()
        return loss

    def finish(self) -> None:
        """Nothing runs on."""
