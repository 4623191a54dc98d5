# SPDX-License-Identifier: Apache-2.0
"""Training runs that take turns, update by update, and what each update took."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl

from hf_sam.landscape.data import examples


@dataclass
class Samples:
    """One entry per update.

    Attributes:
        seconds: from the end of the update before to the end of this one: fetching the data, all
            passes, clipping, the optimizer's step.
        cpu_seconds: CPU time of the process in the same span; empty on a GPU.
        forwards: how often the model was called.
        backwards: how often a loss was differentiated.
        forward_examples: examples in all these calls together.
        backward_examples: examples whose losses were differentiated.
        losses: what `training_step` returned.
        pass_seconds: from the beginning of each forward to the end of its backward, together.
        step_seconds: in `training_step`: what is beyond the passes is the method's own work.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    backwards: list[int] = field(default_factory=list)
    forward_examples: list[int] = field(default_factory=list)
    backward_examples: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    pass_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)


class Stopwatch:
    """Times spans of work: on the CPU by its clock, on a GPU by events in its queue.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._spans: list[list[Any]] = []

    def now(self) -> Any:
        """Return a point in time, for `seconds`."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def start(self) -> None:
        """Begin a span."""
        self._spans.append([self.now(), None])

    def stop(self) -> None:
        """End the last span here, also if it was ended before."""
        self._spans[-1][1] = self.now()

    def drain(self) -> float:
        """Return the seconds of all spans together, and forget them; on a GPU, when it is done."""
        spans, self._spans = self._spans, []
        if self._cuda:
            return float(sum(a.elapsed_time(b) for a, b in spans)) / 1000
        return float(sum(b - a for a, b in spans))


class Passes:
    """Counts the forward and backward passes of a trainer's model, and the examples in them."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._size = 0
        self._whole = trainer.accelerator.backward
        self.watch: Any = Stopwatch(trainer.args.device)
        assert trainer.model is not None
        trainer.model.register_forward_pre_hook(self._forward, with_kwargs=True)
        trainer.model.register_forward_hook(self._forwarded)
        trainer.accelerator.backward = self._backward
        self.clear()

    def clear(self) -> None:
        """Start counting from zero."""
        self.forwards = self.backwards = self.forward_examples = self.backward_examples = 0

    def _forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._asks():
            return
        self._size = examples(kwargs)
        self.forwards += 1
        self.forward_examples += self._size
        self.watch.start()

    def _forwarded(self, model: nn.Module, args: Any, outputs: Any) -> None:
        if not self._asks():
            self.watch.stop()

    def _asks(self) -> bool:
        """Return whether the loss is only asked what it is, before the first update."""
        which = getattr(getattr(self._trainer, "_passes", None), "which", None)
        return which is not None and which.number == 0 and not torch.is_grad_enabled()

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.backwards += 1
        self.backward_examples += self._size
        self._whole(loss, **kwargs)
        self.watch.stop()


class Recorder(TrainerCallback):
    """Samples every update of a trainer.

    Attributes:
        samples: one entry per update.
        passes: of the update that runs.

    Args:
        trainer: which gets this callback.
        after_update: called after every sample, outside the time that is measured.
    """

    def __init__(self, trainer: Trainer, after_update: Callable[[TrainerControl], None]) -> None:
        self.samples = Samples()
        self._after_update = after_update
        self._device = trainer.args.device
        self.passes = Passes(trainer)
        self._steps = Stopwatch(self._device)
        self._losses: list[Tensor] = []
        self._step = trainer.training_step
        trainer.training_step = self._training_step  # type: ignore[method-assign]
        trainer.add_callback(self)

    def _training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._steps.start()
        loss = self._step(*args, **kwargs)
        self._steps.stop()
        self._losses.append(loss.detach())
        return loss

    def _start(self) -> None:
        self.passes.clear()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._cpu = time.process_time()
        self._clock = time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock for the first update."""
        self._start()

    def on_step_end(
        self, args: Any, state: Any, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Take the sample, let others have their turn, and start the clock for the next update."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, cpu = time.perf_counter(), time.process_time()
        taken, passes = self.samples, self.passes
        taken.seconds.append(round(now - self._clock, 6))
        if self._device.type == "cpu":
            taken.cpu_seconds.append(round(cpu - self._cpu, 6))
        for name in ("forwards", "backwards", "forward_examples", "backward_examples"):
            getattr(taken, name).append(getattr(passes, name))
        taken.pass_seconds.append(round(passes.watch.drain(), 6))
        taken.step_seconds.append(round(self._steps.drain(), 6))
        taken.losses.append(float(torch.stack(self._losses).sum()))
        self._losses.clear()
        self._after_update(control)
        self._start()
        return control


class Stepped:
    """A training run that stands still after each update until it is told to go on.

    It runs Trainer's own loop in a thread of its own, and only while `step` or `finish` waits for
    it. So of several runs exactly one computes at a time.

    Args:
        trainer: before its training.
        name: in error messages.
    """

    def __init__(self, trainer: Trainer, name: str) -> None:
        self.recorder = Recorder(trainer, self._stand_still)
        self._trainer = trainer
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._last = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._last:
                self._trainer.train()
        except BaseException as error:  # handed to whoever waits
            self._error = error
        finally:
            self._stopped.release()

    def _stand_still(self, control: TrainerControl) -> None:
        self._stopped.release()
        self._go.acquire()
        control.should_training_stop |= self._last

    def step(self) -> None:
        """Make one update.

        Raises:
            RuntimeError: the run failed, with its error as the cause.
        """
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise RuntimeError(f"{self._thread.name}: the run failed: {error}") from error

    def finish(self) -> None:
        """End the run where it stands, and wait for its thread."""
        self._last = True
        self._go.release()
        self._thread.join()


class Turns(Protocol):
    """What can take turns with others, such as `Stepped`."""

    def step(self) -> None:
        """Make one update."""
        ...

    def finish(self) -> None:
        """End where it stands."""
        ...


class Threaded:
    """Makes the updates of a loop in a thread of its own.

    C's allocator treats threads differently from the main program, and `Stepped` has one, too.

    Args:
        loop: not yet started.
    """

    def __init__(self, loop: Turns) -> None:
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1)

    def step(self) -> None:
        """Make one update."""
        self._thread.submit(self._loop.step).result()

    def finish(self) -> None:
        """End the loop and its thread."""
        self._thread.submit(self._loop.finish).result()
        self._thread.shutdown()


def take_turns(
    runs: Mapping[str, Turns], updates: int, seed: int, after: Callable[[int], None]
) -> None:
    """Make the updates of all runs, in an order that is drawn anew for each, and end the runs.

    Args:
        runs: by name.
        updates: of each.
        seed: of the order.
        after: told how many updates all have made.
    """
    order = random.Random(seed)
    try:
        for update in range(updates):
            for name in order.sample(list(runs), len(runs)):
                runs[name].step()
            after(update + 1)
    finally:
        for run in runs.values():
            run.finish()
