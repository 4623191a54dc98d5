# SPDX-License-Identifier: Apache-2.0
"""One pass: a Trainer's own `training_step` on a batch, a part of it, or a drawn example."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from .engine.host import forbid_forward, has_own_step
from .engine.per_example import per_example_losses
from .engine.replay import Replay
from .engine.scaling import honours_num_items
from .engine.window import Batch, BatchSlicer, Window

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    Behind = Trainer
else:
    Behind = object  # whatever Trainer the mixin is put in front of


@dataclass
class Pass:
    """What `compute_loss` is told about the pass that it is called in.

    Attributes:
        losses: filled with the per-example losses (B,) where they are wanted.
        begin: to be called before the model runs.
    """

    losses: list[Tensor] | None = None
    begin: Callable[[], None] = lambda: None


class Passes(Behind):
    """The part of SAMMixin that runs forward and backward, and sees to the scale of the loss."""

    model: Any
    _pass: Pass | None = None
    _counting = False
    _honours: bool | None = None
    _strays: list[nn.Parameter]
    _per_example_loss_func: Callable[[Any, Tensor], Tensor] | None
    _new_replay: Callable[[], Replay]
    _reentrant: bool

    # -- passes ---------------------------------------------------------------------------------

    def _backward(
        self, model: nn.Module, window: Window, batch: Batch, share: Any, with_losses: bool = False
    ) -> Any:
        """Run the class's own `training_step`, which for a whole micro-batch does all scaling
        itself.
        """
        for stray in self._strays:
            stray.grad = None
        if batch.drawn:
            return self._backward_drawn(model, batch)
        self._pass = Pass([] if with_losses else None)
        inputs, num_items = copy.copy(batch.inputs), window.num_items
        try:
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
        with forbid_forward(self) if has_own_step(self) else nullcontext() as guard:
            if guard is not None and self._pass is not None:
                self._pass.begin = guard.remove
            return super().training_step(model, inputs, num_items)

    @contextmanager
    def _scaled(self, share: Any) -> Iterator[None]:
        """Surround the `training_step` of a part: it counts as a whole update, times `share`."""
        steps, backward = self.current_gradient_accumulation_steps, self.accelerator.backward

        def scaled(loss: Tensor, **more: Any) -> None:
            backward((loss * share).to(loss), **more)

        self.current_gradient_accumulation_steps, self.accelerator.backward = 1, scaled
        try:
            yield
        finally:
            self.current_gradient_accumulation_steps, self.accelerator.backward = steps, backward

    def _losses_found(self) -> Tensor:
        """Return what the pass recorded."""
        if self._pass is None or not self._pass.losses:
            raise ValueError(
                f"{type(self).__name__}.compute_loss does not call super().compute_loss, so the "
                "losses of single examples are unknown: call it, or use a method that needs none, "
                "such as sam='sam'"
            )
        return self._pass.losses[0]

    def _items_of(self, batch: Batch, num_items: Any) -> Any:
        """Return the count for which Trainer computes a part's own mean."""
        if num_items is None:
            return None
        count = BatchSlicer(self._loss_shifts_labels).weight(batch) * self._ranks_counted()
        return torch.as_tensor(count, device=self.args.device).clamp(min=1)

    def _ranks_counted(self) -> int:
        """Return by what Trainer multiplies a loss whose items it has counted on all ranks."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def _backward_drawn(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run forward and backward of a drawn example, without dropout and with the running
        statistics.
        """
        model.eval()
        try:
            with self.compute_loss_context_manager():
                loss: Any = self.compute_loss(model, copy.copy(batch.inputs))
            self.accelerator.backward(loss)
        finally:
            model.train()
        return loss.detach()

    def _forward_per_example(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the losses (B,) where the weights stand, of a forward in training mode without
        a graph.
        """
        self._pass = Pass(losses=[])
        try:
            with self._without_graph(), self.compute_loss_context_manager():
                self.compute_loss(model, self._prepare_inputs(copy.copy(batch.inputs)))
            return self._losses_found()
        finally:
            self._pass = None

    @contextmanager
    def _without_graph(self) -> Iterator[None]:
        """Surround a forward without a graph, which reentrant checkpointing would warn about."""
        with torch.no_grad():
            if not self._reentrant:
                yield
                return
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                yield

    # -- the loss's scale -----------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the items only for a loss that honours the count, which is found out once by asking
        it.

        Trainer believes a model that takes `**kwargs`; `BertForSequenceClassification` takes them
        and ignores the count, which makes its accumulated gradient too large.
        """
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        matters = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        if num_items is not None and self._honours is None and matters and self._counting:
            self._honours = self._ask_loss(batch_samples[0], num_items)
            if self._honours is False:
                self._warn(
                    f"The loss of {type(self.model).__name__} ignores num_items_in_batch, though "
                    "Trainer believes the opposite: its accumulated gradient would be too large. "
                    "It is divided as it should be."
                )
        return None if self._honours is False else num_items

    def _warn(self, message: str) -> None:
        """Log a warning that all processes have alike, once."""
        if self.accelerator.is_main_process:
            logger.warning(message)

    def _ask_loss(self, batch: Any, num_items: Any) -> bool | None:
        n = torch.as_tensor(num_items, device=self.args.device)

        def loss_of(items: Tensor) -> Tensor:
            inputs = self._prepare_inputs(copy.copy(batch))
            with self._without_graph(), self.compute_loss_context_manager():
                return self.compute_loss(self.model, inputs, num_items_in_batch=items)

        answer = honours_num_items(loss_of, n, self._new_replay())
        if self.accelerator.num_processes > 1:
            said = torch.tensor([2 if answer is None else int(answer)], device=self.args.device)
            torch.distributed.broadcast(said, 0)
            answer = None if said.item() == 2 else bool(said.item())
        return answer

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss as the class behind, with the per-example losses that a pass wants."""
        now = self._pass or Pass()
        now.begin()
        labels = inputs.get("labels") if now.losses is not None else None
        with_outputs = return_outputs or now.losses is not None
        result = super().compute_loss(model, inputs, return_outputs=with_outputs, **kwargs)
        loss, outputs = result if with_outputs else (result, None)
        if now.losses is not None:
            now.losses.append(self._per_example(outputs, labels))
        if self._honours is False and self._own_loss_alone() and model.training:
            loss = loss / self.current_gradient_accumulation_steps  # which Trainer will not do
        return (loss, outputs) if return_outputs else loss

    def _own_loss_alone(self) -> bool:
        """Whether Trainer leaves the scale of a loss of the user's own to it, unasked."""
        asked = getattr(self, "loss_is_scaled_for_ga", None) is not None
        return self.compute_loss_func is not None and not asked

    def _per_example(self, outputs: Any, labels: Any) -> Tensor:
        if self._per_example_loss_func is not None:
            losses = self._per_example_loss_func(outputs, labels)
            if isinstance(losses, Tensor) and losses.ndim == 1:
                return losses.detach()
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"per_example_loss_func returned {found}; it must return losses of shape (B,)"
            )
        smoothing = self.label_smoother.epsilon if self.label_smoother is not None else 0.0
        shifted, config = self._loss_shifts_labels, getattr(self.model, "config", None)
        return per_example_losses(outputs, labels, config, shifted=shifted, smoothing=smoothing)
