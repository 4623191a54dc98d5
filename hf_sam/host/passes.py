# SPDX-License-Identifier: Apache-2.0
"""`PassRunner`: a Trainer's own `training_step` on a batch, a part of it, or a drawn example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..landscape import HeadTap, Replay
from .ascent import AscentLoss
from .checks import forbid_forward
from .contexts import scaled, without_graph
from .head import Head
from .inputs import Inputs, Loan
from .losses import ExampleLosses, share_of_count
from .weighting import Weighting
from .which import Pass, WhichPass, evaluating
from .window import Batch, TrainerOps, Window


class PassRunner:
    """Runs forward and backward as a Trainer does, with the right scale of the loss.

    Args:
        trainer: the Trainer.
        training_step: the `training_step` of the Trainer class that the mixin extends.
        per_example_loss_func: a function `f(outputs, labels)` that returns losses of shape (B,),
            for a loss of the user's own; see `SAMMixin`.
        own_step: whether that `training_step` is not Trainer's.
        ascent_loss_func: a function for the ascent; see `SAMMixin`.

    Attributes:
        reentrant: whether activations are checkpointed in the mode that warns without a graph.
        honours: whether the loss honours `num_items_in_batch`; None until this is measured.
        which: the pass that runs now; None outside of passes.
        weighting: the rule by which the losses of parts of a batch make up the loss of the whole.
        asked: whether the Trainer class has read, in a pass, which pass runs.
        head: the output head of the model, for methods that stand behind it.
        ascent: the loss of the ascent, if it is another.
    """

    head: Head

    def __init__(
        self,
        trainer: Any,
        training_step: Callable[..., Tensor],
        per_example_loss_func: Callable[[Any, Tensor], Tensor] | None = None,
        own_step: bool = False,
        ascent_loss_func: Callable[..., Tensor] | None = None,
    ) -> None:
        self._trainer = trainer
        self._own_step = own_step
        self._training_step = training_step
        self._example_losses = ExampleLosses(trainer, per_example_loss_func)
        self.ascent = AscentLoss(trainer, ascent_loss_func)
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
        """Begin an update, possibly after one that an exception ended."""
        self.which: WhichPass | None = None
        self._phase = "ascent"
        self._number = 0
        self._pass = None

    def announce(self, phase: str) -> None:
        """Record whether the next pass is for the ascent or the descent gradient."""
        if phase in ("ascent", "descent"):
            self._phase = phase

    def settle(self) -> None:
        """Record that the first update is done."""
        self._inputs.settle()

    @contextmanager
    def around(self, first: bool) -> Iterator[None]:
        """Surround a pass of a method, the first of which is the clean one."""
        self._number += 1
        with self._which("clean" if first else self._phase, self._number):
            yield

    @contextmanager
    def _which(self, kind: str, number: int) -> Iterator[None]:
        before, self.which = self.which, WhichPass(kind, number)
        try:
            yield
        finally:
            self.which = before

    @property
    def logs(self) -> bool:
        """Whether values that are logged now are kept: in the clean pass, and outside of passes."""
        return self.which is None or (self.which.kind == "clean" and self.which.number > 0)

    # -- passes ---------------------------------------------------------------------------------

    def backward(
        self,
        model: nn.Module,
        window: Window,
        batch: Batch,
        share: Any,
        with_losses: bool = False,
        head: HeadTap | None = None,
        ascending: bool = False,
    ) -> Any:
        """Run the Trainer class's own `training_step`, as `hf_sam.landscape.Backward` describes."""
        if batch.drawn:
            return self._backward_drawn(model, batch, window.num_items)
        self._pass = Pass([] if with_losses else None)
        step = partial(self._step, batch, share, window.num_items)
        try:
            if ascending:  # no pass of the loss that is trained
                with self._which("ascent", self._number), self.ascent.instead():
                    return step(model)
            loss = step(model) if head is None else self.head.backward(step, model, head)
            return (loss, self._losses_found()) if with_losses else loss
        finally:
            self._pass = None

    def _step(
        self, batch: Batch, share: Any, num_items: Any, model: nn.Module, inside: bool = False
    ) -> Tensor:
        """Run the Trainer class's `training_step`; only its `compute_loss` may run the model.

        If it is called from inside of another one, it is no pass, and its log is not kept.
        """
        guard = self._own_step and not inside
        with (
            self._which("ascent", self._number) if inside else nullcontext(),
            forbid_forward(self._trainer) if guard else nullcontext(),
            nullcontext() if torch.is_grad_enabled() else without_graph(self.reentrant),
            self._inputs.lend(batch.inputs) as inputs,
        ):
            if batch.part:
                inputs = self.weighting.filled(inputs)
            if batch.whole:  # Trainer scales a whole micro-batch itself
                return self._training_step(model, inputs, num_items)
            with scaled(self._trainer, share):
                loss = self._training_step(model, inputs, self._items_of(batch, num_items))
            return (loss * share).to(loss)

    def _losses_found(self) -> Tensor:
        """Return the per-example losses that the pass recorded."""
        if self._pass is None or not self._pass.losses:
            raise ValueError(
                f"{type(self._trainer).__name__}.compute_loss does not call super().compute_loss, "
                "so the losses of single examples are unknown: call it, or use a method that needs "
                "none, such as sam='sam'"
            )
        return self._pass.losses[0]

    def _items_of(self, batch: Batch, num_items: Any) -> Any:
        """Return the number of items with which Trainer computes a part's own mean, or None."""
        if num_items is None:
            return None
        count = self.items.count(batch.inputs, self.ops.size(batch)) * self.ranks_counted
        return torch.as_tensor(count, device=self._trainer.args.device).clamp(min=1)

    @property
    def items(self) -> Weighting:
        """The rule by which Trainer counts the items of a batch."""
        return Weighting("targets" if self._trainer._loss_shifts_labels else "labels")

    @property
    def ops(self) -> TrainerOps:
        """The operations that count and cut batches."""
        return TrainerOps(self.weighting, getattr(self._trainer, "take", None))

    @property
    def ranks_counted(self) -> int:
        """The factor by which Trainer multiplies a loss whose items it has counted on all ranks."""
        trainer = self._trainer
        counted = trainer.args.average_tokens_across_devices
        return trainer.accelerator.num_processes if counted else 1

    def _backward_drawn(self, model: nn.Module, batch: Batch, num_items: Any) -> Tensor:
        """Run a drawn example without dropout and with the running statistics."""
        with self._which("clean", 0):  # it comes before the first pass, outside of the update
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
        """Return the batch's own loss; `num_items` is None if Trainer counts no items."""
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
                without_graph(self.reentrant),
                trainer.compute_loss_context_manager(),
            ):
                loss = self._loss(model, batch, trainer._prepare_inputs(inputs), num_items)
            return loss, self._losses_found() if with_losses else None
        finally:
            self._pass = None

    # -- the loss -------------------------------------------------------------------------------

    def ask(self, batch: Batch, num_items: Any, *, with_losses: bool = False) -> tuple[Any, Any]:
        """Return the loss of a copy of a batch as its only one, and the losses (B,) or None."""
        batch = replace(batch, inputs=Loan(batch.inputs).inputs)
        with scaled(self._trainer, 1.0), self._which("clean", 0):
            return self._forward(self._trainer.model, batch, num_items, with_losses=with_losses)

    def ask_loss(self, inputs: Any, num_items: Any, replay: Replay) -> bool | None:
        """Measure whether the loss honours `num_items_in_batch`; all processes agree on it."""
        trainer = self._trainer

        def loss_of(items: Tensor) -> float:
            own = trainer._prepare_inputs(Loan(inputs).inputs)
            with replay.no_trace(), without_graph(self.reentrant):
                with trainer.compute_loss_context_manager():
                    return float(trainer.compute_loss(trainer.model, own, num_items_in_batch=items))

        with self._which("clean", 0):
            items = torch.as_tensor(num_items, device=trainer.args.device)
            share = share_of_count(trainer, loss_of, items)
        self.honours = None if share is None else share != 0.0
        return self.honours

    def compute_loss(
        self,
        base: Callable[..., Any],
        model: nn.Module,
        inputs: Any,
        return_outputs: bool,
        **kwargs: Any,
    ) -> Any:
        """Compute the loss by `base`, and per-example losses if the pass wants them."""
        now = self._pass or Pass()
        # Read first: a `compute_loss` may take the labels out of the inputs.
        labels = self._example_losses.labels(inputs) if now.losses is not None else None
        with_outputs = return_outputs or now.losses is not None
        result = base(model, inputs, return_outputs=with_outputs, **kwargs)
        loss, outputs = result if with_outputs else (result, None)
        if now.losses is not None:
            now.losses.append(self._example_losses(outputs, labels))
        if self.honours is False and self._own_loss_alone() and model.training:
            # Trainer assumes that the loss does this itself.
            loss = loss / self._trainer.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _own_loss_alone(self) -> bool:
        """Return whether Trainer, by its own assumption, does not divide the user's own loss."""
        asked = getattr(self._trainer, "loss_is_scaled_for_ga", None) is not None
        return self._trainer.compute_loss_func is not None and not asked

    @property
    def own_losses(self) -> bool:
        """Whether the losses of single examples come from the user's own function."""
        return self._example_losses.own
