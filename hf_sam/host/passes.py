# SPDX-License-Identifier: Apache-2.0
"""Passes of a Trainer: its own `training_step` on a batch, a part of it, or a drawn example."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..landscape import Replay
from .checks import forbid_forward
from .inputs import Inputs, Loan
from .losses import counted_share, per_example_losses
from .weighting import Weighting
from .which import WhichPass, evaluating
from .window import Batch, TrainerOps, Window


@dataclass
class Pass:
    """What `compute_loss` is told about the pass that it is called in.

    Attributes:
        losses: filled with the per-example losses (B,) where they are wanted.
    """

    losses: list[Tensor] | None = None


class PassRunner:
    """Runs forward and backward as a Trainer does, and sees to the scale of the loss.

    Args:
        trainer: the Trainer.
        training_step: that of the class behind SAMMixin.
        per_example_loss_func: `f(outputs, labels)` returns losses of shape (B,), for a loss of the
            user's own; `labels` are all inputs where no field has that name.
        own_step: whether that `training_step` is another than Trainer's.

    Attributes:
        reentrant: whether activations are checkpointed in the mode that warns without a graph.
        honours: whether the loss honours `num_items_in_batch`; None while it was not asked.
        which: the pass that runs; None outside of passes.
        weighting: how the losses of parts of a batch make up the loss of the whole.
        asked: whether the Trainer class has asked which pass runs, in a pass.
    """

    def __init__(
        self,
        trainer: Any,
        training_step: Callable[..., Tensor],
        per_example_loss_func: Callable[[Any, Tensor], Tensor] | None = None,
        own_step: bool = False,
    ) -> None:
        self._trainer = trainer
        self._own_step = own_step
        self._training_step = training_step
        self._per_example_loss_func = per_example_loss_func
        self.weighting = Weighting()
        self._pass: Pass | None = None
        self.reentrant = False
        self.honours: bool | None = None
        self.asked = False
        self._inputs = Inputs()
        self._layers_only = False
        self.start()

    # -- which pass -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin an update, also after one that an exception ended."""
        self.which: WhichPass | None = None
        self._phase = "ascent"
        self._number = 0
        self._pass = None

    def announce(self, phase: str) -> None:
        """Take note of what the next pass serves for."""
        if phase in ("ascent", "descent"):
            self._phase = phase

    def settle(self) -> None:
        """Note that the first update is done."""
        self._inputs.settle()

    @contextmanager
    def around(self, first: bool) -> Iterator[None]:
        """Surround a pass of a method."""
        self._number += 1
        with self._which("clean" if first else self._phase, self._number):
            yield

    @contextmanager
    def _which(self, kind: str, number: int) -> Iterator[None]:
        self.which = WhichPass(kind, number)
        try:
            yield
        finally:
            self.which = None

    @property
    def logs(self) -> bool:
        """Whether what is logged now is to be kept."""
        return self.which is None or (self.which.kind == "clean" and self.which.number > 0)

    # -- passes ---------------------------------------------------------------------------------

    def backward(
        self, model: nn.Module, window: Window, batch: Batch, share: Any, with_losses: bool = False
    ) -> Any:
        """Run the class's own `training_step`; see `hf_sam.landscape.Backward`.

        For a whole micro-batch it does all scaling itself.
        """
        if batch.drawn:
            return self._backward_drawn(model, batch, window.num_items)
        self._pass = Pass([] if with_losses else None)
        num_items = window.num_items
        try:
            with self._inputs.lend(batch.inputs) as inputs:
                if batch.part:
                    inputs = self.weighting.filled(inputs)
                if batch.whole:
                    loss = self._step(model, inputs, num_items)
                else:
                    with self._scaled(share):
                        loss = self._step(model, inputs, self._items_of(batch, num_items))
                    loss = (loss * share).to(loss)
            return (loss, self._losses_found()) if with_losses else loss
        finally:
            self._pass = None

    def _step(self, model: nn.Module, inputs: Any, num_items: Any) -> Tensor:
        """Run the class's own `training_step`, in which only `compute_loss` may run the model."""
        with forbid_forward(self._trainer) if self._own_step else nullcontext():
            return self._training_step(model, inputs, num_items)

    @contextmanager
    def _scaled(self, share: Any) -> Iterator[None]:
        """Surround the `training_step` of a part: it counts as a whole update, times `share`."""
        trainer = self._trainer
        accelerator, steps = trainer.accelerator, trainer.current_gradient_accumulation_steps
        backward = accelerator.backward

        def scaled(loss: Tensor, **more: Any) -> None:
            backward((loss * share).to(loss), **more)

        trainer.current_gradient_accumulation_steps, accelerator.backward = 1, scaled
        try:
            yield
        finally:
            trainer.current_gradient_accumulation_steps = steps
            accelerator.backward = backward

    def _losses_found(self) -> Tensor:
        """Return what the pass recorded."""
        if self._pass is None or not self._pass.losses:
            raise ValueError(
                f"{type(self._trainer).__name__}.compute_loss does not call super().compute_loss, "
                "so the losses of single examples are unknown: call it, or use a method that needs "
                "none, such as sam='sam'"
            )
        return self._pass.losses[0]

    def _items_of(self, batch: Batch, num_items: Any) -> Any:
        """Return the count for which Trainer computes a part's own mean; None for none."""
        if num_items is None:
            return None
        count = self.items.count(batch.inputs, self.ops.size(batch)) * self.ranks_counted
        return torch.as_tensor(count, device=self._trainer.args.device).clamp(min=1)

    @property
    def items(self) -> Weighting:
        """How Trainer counts the items of a batch."""
        return Weighting("targets" if self._trainer._loss_shifts_labels else "labels")

    @property
    def ops(self) -> TrainerOps:
        """How batches are counted and cut."""
        return TrainerOps(self.weighting, getattr(self._trainer, "take", None))

    @property
    def ranks_counted(self) -> int:
        """By what Trainer multiplies a loss whose items it has counted on all ranks."""
        trainer = self._trainer
        counted = trainer.args.average_tokens_across_devices
        return trainer.accelerator.num_processes if counted else 1

    def _backward_drawn(self, model: nn.Module, batch: Batch, num_items: Any) -> Tensor:
        """Run a drawn example without dropout, and with the running statistics."""
        with self._which("clean", 0):  # before the first pass, and no part of the update
            try:
                loss = self._backward_evaluating(model, batch, num_items)
            except (AttributeError, KeyError, TypeError, ValueError):
                if self._layers_only:
                    raise
                # Detectors have a loss in training mode only.
                loss = self._backward_evaluating(model, batch, num_items, layers=True)
                self._layers_only = True
        return loss

    def _backward_evaluating(
        self, model: nn.Module, batch: Batch, num_items: Any, layers: bool = False
    ) -> Tensor:
        trainer = self._trainer
        with evaluating(model, layers or self._layers_only):
            with trainer.compute_loss_context_manager():
                loss: Any = self._loss(model, batch, Loan(batch.inputs).inputs, num_items)
            trainer.accelerator.backward(loss)
        return loss.detach()

    def _loss(self, model: nn.Module, batch: Batch, inputs: Any, num_items: Any) -> Any:
        """Return the batch's own loss; a number of items says that Trainer counts them."""
        if num_items is None:
            return self._trainer.compute_loss(model, inputs)
        own = self._items_of(batch, num_items)
        return self._trainer.compute_loss(model, inputs, num_items_in_batch=own)

    def per_example(self, model: nn.Module, window: Window, batch: Batch) -> Tensor:
        """Return the losses (B,) where the weights stand, in training mode, without a graph."""
        return self._forward(model, batch, window.num_items, with_losses=True)[1]

    def _forward(
        self, model: nn.Module, batch: Batch, num_items: Any, *, with_losses: bool = False
    ) -> tuple[Any, Any]:
        """Return a batch's own loss, and the losses (B,) or None, without a graph."""
        trainer = self._trainer
        self._pass = Pass(losses=[] if with_losses else None)
        try:
            with (
                self._inputs.lend(batch.inputs) as inputs,
                self._without_graph(),
                trainer.compute_loss_context_manager(),
            ):
                loss = self._loss(model, batch, trainer._prepare_inputs(inputs), num_items)
            return loss, self._losses_found() if with_losses else None
        finally:
            self._pass = None

    @contextmanager
    def _without_graph(self) -> Iterator[None]:
        """Surround a forward without a graph, which reentrant checkpointing would warn about."""
        with torch.no_grad():
            if not self.reentrant:
                yield
                return
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                yield

    # -- the loss -------------------------------------------------------------------------------

    def ask(self, batch: Batch, num_items: Any, *, with_losses: bool = False) -> tuple[Any, Any]:
        """Return the loss of a copy of a batch as its only one, and the losses (B,) or None."""
        batch = replace(batch, inputs=Loan(batch.inputs).inputs)
        with self._scaled(1.0), self._which("clean", 0):
            return self._forward(self._trainer.model, batch, num_items, with_losses=with_losses)

    def ask_loss(self, inputs: Any, num_items: Any, replay: Replay) -> bool | None:
        """Find out whether the loss honours `num_items_in_batch`, equally on all processes."""
        trainer = self._trainer
        device = trainer.args.device

        def loss_of(items: Tensor) -> float:
            own = trainer._prepare_inputs(Loan(inputs).inputs)
            with replay.no_trace(), self._without_graph():
                with trainer.compute_loss_context_manager():
                    return float(trainer.compute_loss(trainer.model, own, num_items_in_batch=items))

        with self._which("clean", 0):
            share = counted_share(loss_of, torch.as_tensor(num_items, device=device))
        if trainer.accelerator.num_processes > 1:
            said = torch.tensor([math.nan if share is None else share], device=device)
            torch.distributed.broadcast(said, 0)
            share = None if math.isnan(said.item()) else said.item()
        self.honours = None if share is None else share != 0.0
        if share and share < 0.98:
            trainer._warn(
                f"The loss of {type(trainer.model).__name__} is divided by num_items_in_batch in "
                f"part only ({share:.3f} of it), as with an auxiliary loss. Trainer adds up the "
                "rest over micro-batches, so accumulation shows; methods that cut batches average "
                "it, so that at radius 0 their accumulated gradient is not the plain Trainer's."
            )
        return self.honours

    def compute_loss(
        self,
        behind: Callable[..., Any],
        model: nn.Module,
        inputs: Any,
        return_outputs: bool,
        **kwargs: Any,
    ) -> Any:
        """Compute the loss as the class behind, with the per-example losses that a pass wants."""
        now = self._pass or Pass()
        labels = self._labels(inputs) if now.losses is not None else None
        with_outputs = return_outputs or now.losses is not None
        result = behind(model, inputs, return_outputs=with_outputs, **kwargs)
        loss, outputs = result if with_outputs else (result, None)
        if now.losses is not None:
            now.losses.append(self._per_example(outputs, labels))
        if self.honours is False and self._own_loss_alone() and model.training:
            # Trainer believes that the loss does this itself.
            loss = loss / self._trainer.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _own_loss_alone(self) -> bool:
        """Whether Trainer leaves the scale of a loss of the user's own to it, unasked."""
        asked = getattr(self._trainer, "loss_is_scaled_for_ga", None) is not None
        return self._trainer.compute_loss_func is not None and not asked

    @property
    def own_losses(self) -> bool:
        """Whether the losses of single examples come from the user's own function."""
        return self._per_example_loss_func is not None

    def _labels(self, inputs: Any) -> Any:
        """Return the labels; for a function of the user's own all inputs, if there are none."""
        if self.own_losses and "labels" not in inputs:
            return Loan(inputs).inputs
        return inputs.get("labels")

    def _per_example(self, outputs: Any, labels: Any) -> Tensor:
        if self._per_example_loss_func is None:
            trainer = self._trainer
            smoother = trainer.label_smoother
            return per_example_losses(
                outputs,
                labels,
                getattr(trainer.model, "config", None),
                shifted=trainer._loss_shifts_labels,
                smoothing=smoother.epsilon if smoother is not None else 0.0,
            )
        losses = self._per_example_loss_func(outputs, labels)
        if isinstance(losses, Tensor) and losses.ndim == 1:
            return losses.detach()
        found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"per_example_loss_func returned {found}; it must return losses of shape (B,)"
        )
