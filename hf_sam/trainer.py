# SPDX-License-Identifier: Apache-2.0
"""`SAMMixin`, which adds a SAM method to any Hugging Face Trainer, and `SAMTrainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from . import __version__
from .arguments import build_method, check_order, main_method, option
from .engine.choice import check_engine, check_optimizer, check_processes
from .host.card import add_section, write_with_tags
from .host.checks import base_overrides_step, check_host, check_trainable, refuse_step_in_front
from .host.passes import PassRunner
from .host.which import WhichPass
from .host.window import Window
from .methods import Method, Plain
from .run import Run

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    TrainerBase = Trainer
else:
    TrainerBase = object  # whatever Trainer the mixin is put in front of


class SAMMixin(TrainerBase):
    """A mixin that adds a SAM method to a Trainer class, and comes first among the bases.

    Every pass of a method is the Trainer class's own `training_step`. The optimizer, the scheduler,
    clipping, GradScaler, logging and checkpoints stay Trainer's. The passes of an update run when
    its last micro-batch arrives.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer): ...

    Args:
        sam: a key of `METHODS` (overrides `args.sam`), a method object (which is copied), or None
            for the method that `args` name.
        ascent_loss_func: a function `f(outputs, labels, num_items_in_batch=None)`, the loss of the
            ascent if it is not the trained one, which is then logged at the perturbed weights. Or
            a class has a method `compute_ascent_loss(model, inputs, num_items_in_batch=None)`.
        per_example_loss_func: a function `f(outputs, labels)` that returns losses of shape (B,),
            for methods that select examples under a loss of your own. If the inputs have no field
            `labels`, as for question answering, it gets all inputs in place of the labels.
        *args: the arguments of the Trainer class.
        **kwargs: the arguments of the Trainer class.

    Raises:
        ValueError: a method, option, schedule, optimizer, parameter pattern or engine is not
            allowed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which the mixin comes after the Trainer, and so has no effect."""
        super().__init_subclass__(**kwargs)
        check_order(cls, SAMMixin, Trainer)

    def __init__(
        self,
        *args: Any,
        sam: str | Method | None = None,
        per_example_loss_func: Callable[[Any, Tensor], Tensor] | None = None,
        ascent_loss_func: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self._sam_given = sam
        given = per_example_loss_func, base_overrides_step(type(self), SAMMixin), ascent_loss_func
        self._passes = PassRunner(self, super().training_step, *given)
        self._counting = False
        self._window: Window | None = None
        self._windows = 0
        self.model: Any
        self.optimizer: Any
        self._orphan_warned = False
        self.current_gradient_accumulation_steps = 1
        self._pending_readings: dict[str, float] = {}
        # Before Trainer gets the model: FSDP's launcher lets some processes load shapes only.
        for given in (*args, *kwargs.values()):
            if isinstance(given, TrainingArguments):
                check_processes(given)
        super().__init__(*args, **kwargs)
        self._method = build_method(self.args, sam)
        check_engine(self)
        check_host(type(self))
        check_trainable(self.model)
        check_optimizer(self.optimizer, self.args)
        self._run = Run(self, self._passes, self._method)

    # -- one run --------------------------------------------------------------------------------

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Build a new method object for every run.

        Hyper-parameter searches and batch-size finders call this more than once.
        """
        self._method = build_method(self.args, self._sam_given)
        self._window, self._counting, self._pending_readings = None, False, {}
        self._passes.start()
        self._run = Run(self, self._passes, self._method)
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """Prepare the run, now that the optimizer exists, and load the method's state."""
        model, loader = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        self._run.prepare(model, loader, max_steps)
        if resume_from_checkpoint is not None:
            self._run.load(resume_from_checkpoint)
        return model, loader

    # -- one update -----------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Any:
        """Open a window for exactly the micro-batches of the next update."""
        self._counting = True
        try:
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        finally:
            self._counting = False
        self._window = Window(len(batches), num_items)
        self._windows += 1
        return batches, num_items

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Collect a micro-batch, and run the method with the last one of an update.

        The method's result is then in `p.grad`, from which the optimizer takes it.

        Returns:
            The `()` clean loss of the whole update with its last micro-batch, and zero before.
        """
        if isinstance(self._method, Plain):
            self._passes.start()
            with self._passes.around(first=True):
                return super().training_step(model, inputs, num_items_in_batch)
        self._check_calls()
        assert self._window is not None
        if not self._window.add(inputs):
            return torch.zeros((), device=self.args.device)
        window, self._window = self._window, None
        if not self.accelerator.sync_gradients:
            self._warn_orphan(window)
            return torch.zeros((), device=self.args.device)
        if not model.training:  # it walks over all modules, and each pass does it again
            model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free ones have modes, too
            self.optimizer.train()
        return self._run.update(window)

    def _check_calls(self) -> None:
        """Refuse a loop, or a subclass's step, that does more than hand over micro-batches."""
        if self._window is None and self._windows:
            refuse_step_in_front(type(self), SAMMixin, "runs more than one step for a batch")
        if self._window is None:
            raise NotImplementedError(
                f"{type(self).__name__} calls training_step without get_batch_samples, so the "
                "micro-batches of an update are unknown; SAM needs Trainer's own epoch loop"
            )
        # Between the micro-batches of an update, nothing else may add to the gradients.
        params = self._run.parameters.params
        if self._window.batches and any(p.grad is not None for p in params):
            refuse_step_in_front(type(self), SAMMixin, "adds gradients of its own")

    @property
    def sam_pass(self) -> WhichPass | None:
        """The pass of an update that runs now, as (kind, number); None outside of passes.

        A `compute_loss` that draws anything beside its inputs should draw it in the clean pass and
        keep it in an attribute. If a class reads this property, later passes find the attributes
        and containers of the trainer as the clean pass left them. See `WhichPass`.
        """
        # Reading it in a pass is what switches this behaviour on.
        self._passes.asked |= self._passes.which is not None
        return self._passes.which

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the items only if the loss honours the count, which is measured.

        Trainer assumes that a model with `**kwargs` does. `BertForSequenceClassification` has them
        and ignores the count, which makes its accumulated gradient too large.
        """
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        matters = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        passes = self._passes
        if num_items is not None and passes.honours is None and matters and self._counting:
            replay = self._run.new_replay(random=True)
            if passes.ask_loss(batch_samples[0], num_items, replay) is False:
                self._warn(
                    f"The loss of {type(self.model).__name__} ignores num_items_in_batch, though "
                    "Trainer assumes the opposite: its accumulated gradient would be too large. "
                    "It is divided as it should be."
                )
        return None if passes.honours is False else num_items

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss as the Trainer class does, with per-example losses if needed."""
        base = super().compute_loss
        return self._passes.compute_loss(base, model, inputs, return_outputs, **kwargs)

    def _warn(self, message: str) -> None:
        """Log a warning in the main process, because all processes would log the same."""
        if self.accelerator.is_main_process:
            logger.warning(message)

    def _warn_orphan(self, window: Window) -> None:
        if not self._orphan_warned:
            self._orphan_warned = True
            self._warn(
                f"The data ended after {window.size} of {self.args.gradient_accumulation_steps} "
                "micro-batches of an update; Trainer makes no update of them, so they are dropped."
            )

    # -- logs, checkpoints, cards ---------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Collect the readings before Trainer writes its training log."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._pending_readings = self._run.drain()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._pending_readings = {}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer class does, and add the `sam/` and `memory/` readings.

        Values that `compute_loss` logs are logged in the clean pass only.
        """
        if not self._passes.logs:
            return
        if "loss" in logs:
            logs.update(self._pending_readings)
        if self._run.memory is not None:
            self._run.memory.add_to(logs)
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save as the Trainer class does, and save the method's state."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not isinstance(self._method, Plain):
            self._run.save(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as the Trainer class does, with tags and a section about the method."""
        base = super().create_model_card
        if isinstance(self._method, Plain):
            base(*args, **kwargs)
            return
        config, kind = self.sam_config, type(main_method(self._method)[1])
        write_with_tags(base, config["sam"], *args, **kwargs)
        if self.is_world_process_zero():
            add_section(self.args.output_dir, __version__, kind, config, self.state.log_history)

    @property
    def sam_config(self) -> dict[str, Any]:
        """The method, its options and how it is applied, in a form that JSON can hold."""
        names = ["sam_when", "sam_where", "sam_accumulation", "sam_ascent_sync"]
        names += ["sam_replay_rng", "sam_freeze_norm_stats", "sam_rounding", "sam_offload"]
        return {
            "sam": main_method(self._method)[0],
            "method": self._method.describe(),
            **{name: option(self.args, name) for name in names},
        }


class SAMTrainer(SAMMixin, Trainer):
    """Trainer with a SAM method.

    Change `Trainer` to `SAMTrainer`, and `TrainingArguments` to `SAMTrainingArguments`.

    Example:
        >>> import tempfile, torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hf_sam import SAMTrainingArguments
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=1, intermediate_size=8)
        >>> data = [{"input_ids": [i, 1, 2], "labels": i % 2} for i in range(8)]
        >>> args = SAMTrainingArguments(tempfile.mkdtemp(), sam="sam", sam_rho=0.01, max_steps=2,
        ...     use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
        >>> model = BertForSequenceClassification(config)
        >>> trainer = SAMTrainer(model=model, args=args, train_dataset=data)
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {...'train_loss': ...}
        2
    """
