# SPDX-License-Identifier: Apache-2.0
"""`SAMMixin`: any Hugging Face Trainer, with a SAM method between its batches and its optimizer."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from . import __version__
from .arguments import build_method, check_order, main_method, option
from .callbacks.memory import MemoryCallback
from .engine.checkpoint import load_state, save_state
from .engine.choice import check_engine, check_optimizer, check_processes, engine_for
from .engine.table import is_fsdp2, reentrant
from .host.checks import (
    GIVEN,
    check_averaged,
    check_host,
    own_step_behind,
    refuse_step_in_front,
)
from .host.hooks import check_hooks
from .host.learning_rate import RateShare
from .host.logs import RunningMeans
from .host.losses import check_losses
from .host.measuring import Measuring
from .host.parameters import Parameters
from .host.passes import PassRunner
from .host.records import Records
from .host.state import Search
from .host.which import WhichPass
from .host.window import Window, check_cuttable, check_drawable, data_of, draw
from .landscape import Landscape, Progress, RandomStates, Replay, Store, Update
from .methods import Method, Plain, asks
from .parts.where import check_patterns, choose

logger = logging.getLogger(__name__)

NO_RECORDS = GIVEN - {"model", "compute_loss_func"} | {
    *(
        "_engine",
        "_means",
        "_measuring",
        "_memory",
        "_method",
        "_parameters",
        "_passes",
        "_rate_share",
    ),
    *("_pending_readings", "_records", "_sam_given", "_window", "_windows"),
}
"""Attributes that no pass moves: what a Trainer is given, and what the mixin keeps itself."""

if TYPE_CHECKING:
    TrainerBase = Trainer
else:
    TrainerBase = object  # whatever Trainer the mixin is put in front of


class SAMMixin(TrainerBase):
    """Put in front of a Trainer class: `class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer): ...`.

    Every pass of a method is the class's own `training_step`; the optimizer, the scheduler,
    clipping, GradScaler, logging and checkpoints stay Trainer's. The work of an update is done when
    its last micro-batch arrives.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer): ...

    Args:
        sam: a key of `METHODS` (overrides `args.sam`), a method object (copied), or None for what
            `args` say.
        per_example_loss_func: `f(outputs, labels)` returns losses of shape (B,), for methods that
            select examples under a loss of your own. `labels` are all inputs of the model if there
            is no field of that name, as for question answering.
        *args: as the Trainer behind takes them.
        **kwargs: as the Trainer behind takes them.

    Raises:
        ValueError: a method, option, schedule, optimizer, parameter pattern or engine that is not
            allowed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which the mixin comes after the Trainer, and so never has a say."""
        super().__init_subclass__(**kwargs)
        check_order(cls, SAMMixin, Trainer)

    def __init__(
        self,
        *args: Any,
        sam: str | Method | None = None,
        per_example_loss_func: Callable[[Any, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        self._sam_given = sam
        own_step = own_step_behind(type(self), SAMMixin)
        self._passes = PassRunner(self, super().training_step, per_example_loss_func, own_step)
        self._measuring: Measuring | None = None
        self._counting = False
        self._window: Window | None = None
        self._windows = 0
        self.model: Any
        self.optimizer: Any
        self._orphan_warned = False
        self.current_gradient_accumulation_steps = 1
        self._means = RunningMeans()
        self._pending_readings: dict[str, float] = {}
        self._memory: MemoryCallback | None = None
        for given in (*args, *kwargs.values()):
            if isinstance(given, TrainingArguments):
                check_processes(given)
        super().__init__(*args, **kwargs)
        self._method = build_method(self.args, sam)
        check_engine(self)
        check_host(type(self))
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError(
                "model has no trainable parameter: unfreeze some (requires_grad_), or add an "
                "adapter"
            )
        check_optimizer(self.optimizer, self.args)

    # -- one run --------------------------------------------------------------------------------

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Build a new method object for every run.

        Hyper-parameter searches and batch-size finders call this more than once.
        """
        self._method = build_method(self.args, self._sam_given)
        self._means, self._pending_readings = RunningMeans(), {}
        self._window, self._counting = None, False
        self._passes.start()
        self._records = self._new_records()
        check_hooks(self.model.named_parameters())
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """Look at the parameters, now that the optimizer exists, and load the method's state."""
        model, loader = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        check_optimizer(self.optimizer, self.args)
        self._memory = self._memory_callback()
        self._passes.reentrant = reentrant(self)
        replay = self._new_replay(option(self.args, "sam_replay_rng"))
        self._engine = engine_for(self, model, replay, self._local_ascent(), self._passes.reentrant)
        patterns = option(self.args, "sam_where")
        self._parameters = Parameters(
            self.model, partial(self._engine.params, self.optimizer), partial(choose, patterns)
        )
        known = self._parameters
        check_patterns(patterns, known.params, known.names, self.model)
        inside = [name for name, _ in self.model.named_parameters()]
        check_averaged(known.names, inside, self.accelerator.num_processes)
        self._engine.outside = known.outside
        self._rate_share = RateShare(self.optimizer, self.lr_scheduler, max_steps)
        self._warn_never(max_steps)
        batches = len(loader) if has_length(loader) else None
        self._per_epoch = batches and math.ceil(batches / self.args.gradient_accumulation_steps)
        self._check_data_needs(loader)
        if resume_from_checkpoint is not None:
            self._method.load_state_dict(
                load_state(
                    resume_from_checkpoint,
                    self._method.describe(),
                    known.names,
                    known.params,
                    self._engine,
                    self._method.keeps_state,
                )
            )
        return model, loader

    def _check_data_needs(self, loader: Any) -> None:
        """Refuse a method that cannot have of the data what it asks for, and log its groups."""
        name, steps = self._method.describe()["name"], self.args.gradient_accumulation_steps
        self._measuring = None
        wanted = asks(self._method, steps)
        if wanted.examples:
            check_cuttable(self, name)
        if wanted.draws:
            check_drawable(loader, name)
        if wanted.losses and not self._passes.own_losses:
            check_losses(self, name)
        if wanted.examples:
            self._measuring = Measuring(self, self._passes, name, wanted.losses)
        ranks = self.accelerator.num_processes
        apart = ranks if self._engine.local_ascent else 1
        if wanted.groups * apart > 1 and self.accelerator.is_main_process:
            logger.info(
                f"{name} perturbs {wanted.groups * apart} groups of an update's examples each for "
                f"itself: {wanted.groups} on each of {apart} ranks, cut from {steps} micro-batches "
                "in a row."
            )

    def _memory_callback(self) -> MemoryCallback | None:
        """Return the user's, or the one that `sam_track_memory` asks for."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, MemoryCallback):
                return callback
        if not option(self.args, "sam_track_memory"):
            return None
        self.add_callback(MemoryCallback())
        return self._memory_callback()

    def _warn_never(self, total: int) -> None:
        when = self._method.when
        if when is not None and not when.ever(total, self.args.get_warmup_steps(total)):
            self._warn(
                f"SAM never starts in this run: the schedule {when} picks none of its {total} "
                "updates."
            )

    def _new_records(self) -> Records:
        """Return what remembers the state that passes move, for a new run."""
        search = Search(
            norm_statistics=option(self.args, "sam_freeze_norm_stats"),
            generators=option(self.args, "sam_replay_rng"),
            weights=not is_fsdp2(self),
        )
        # A method that somebody has replaced on this object is theirs, and so is what it counts.
        replaced = {name for name in vars(self) if callable(getattr(type(self), name, None))}
        return Records(
            self, NO_RECORDS | replaced, search, self._trained, keeps=lambda: self._passes.asked
        )

    def _trained(self) -> list[Tensor]:
        groups = getattr(self.optimizer, "param_groups", [])
        return [p for group in groups for p in group["params"]]

    def _new_replay(self, random: bool) -> Replay:
        """Return a replay of all state, and of the random numbers if asked for."""
        stores: list[Store] = [self._records]
        if random:
            stores.append(RandomStates({p.device for p in self.model.parameters()}))
        return Replay(stores, self._passes.around)

    def _local_ascent(self) -> bool:
        sync = option(self.args, "sam_ascent_sync")
        return sync == "local" or (sync == "auto" and self._method.local_ascent)

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
        """Collect a micro-batch; with the last one of an update run the method.

        The method's result is then in `p.grad`, where the optimizer finds it.

        Returns:
            `()` clean loss of the whole update with its last micro-batch, zero before.
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
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        if self._measuring is not None:
            self._measuring.look(window)
        self._engine.start()
        self._passes.start()
        self._look_at_parameters()
        at = self._landscape(window)
        update = self._method(at)
        self._passes.settle()
        self._records.settle()
        overflow = self._engine.give(self._parameters.params, update)
        if overflow is not None:
            at.skip(overflow)
        self._means.add(at.readings)
        assert at.loss is not None
        return at.loss

    def _check_calls(self) -> None:
        """Refuse a loop, or a step in front of this one, that does more than hand over batches."""
        if self._window is None and self._windows:
            refuse_step_in_front(type(self), SAMMixin, "runs more than one step for a batch")
        if self._window is None:
            raise NotImplementedError(
                f"{type(self).__name__} calls training_step without get_batch_samples, so the "
                "micro-batches of an update are unknown; SAM needs Trainer's own epoch loop"
            )
        # Between the micro-batches of an update nobody else has anything to add.
        if self._window.batches and any(p.grad is not None for p in self._parameters.params):
            refuse_step_in_front(type(self), SAMMixin, "adds gradients of its own")

    def _landscape(self, window: Window) -> Landscape:
        """Return the loss of the window's data as a function of the weights."""
        passes, model = self._passes, self._engine.model
        update = Update(
            params=self._parameters.params,
            backward=partial(passes.backward, model, window),
            perturbable=self._parameters.perturbable,
            progress=self._progress(),
            seed=self.args.seed,
            names=self._parameters.names,
            per_example=partial(passes.per_example, model, window),
            sample=partial(draw, self),
            engine=self._engine,
            cosine=self._means.want_cosine(self.state.global_step),
            on_phase=self._announce,
        )
        return Landscape.of(update, data_of(window, passes.ops, passes.items, passes.ranks_counted))

    def _look_at_parameters(self) -> None:
        """Take in groups that were added, and layers that were unfrozen or frozen."""
        places = self._parameters.changes()
        if places is not None:
            self._engine.outside = self._parameters.outside
            self._method.realign(places, self._engine.placement)

    def _announce(self, phase: str) -> None:
        """Tell those who want to know that a phase of the update begins."""
        self._passes.announce(phase)
        if self._memory is not None:
            self._memory.announce(phase)

    @property
    def sam_pass(self) -> WhichPass | None:
        """The pass of an update that runs now, as (kind, number); None outside of passes.

        What a `compute_loss` draws beside its inputs should be drawn in the clean pass, and kept
        for the others in an attribute: for a class that asks, later passes find the attributes and
        containers of the trainer itself as the clean pass left them. See `WhichPass`.
        """
        self._passes.asked |= self._passes.which is not None
        return self._passes.which

    def _progress(self) -> Progress:
        total = self.state.max_steps
        return Progress(
            step=self.state.global_step,
            total=total,
            warmup=self.args.get_warmup_steps(total),
            per_epoch=self._per_epoch,
            lr_ratio=self._rate_share(),
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the items only for a loss that honours the count, which the loss itself is asked.

        Trainer believes a model that takes `**kwargs`; `BertForSequenceClassification` takes them
        and ignores the count, which makes its accumulated gradient too large.
        """
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        matters = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        passes = self._passes
        if num_items is not None and passes.honours is None and matters and self._counting:
            if passes.ask_loss(batch_samples[0], num_items, self._new_replay(random=True)) is False:
                self._warn(
                    f"The loss of {type(self.model).__name__} ignores num_items_in_batch, though "
                    "Trainer believes the opposite: its accumulated gradient would be too large. "
                    "It is divided as it should be."
                )
        return None if passes.honours is False else num_items

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss as the class behind, and what a pass wants to know beside it."""
        behind = super().compute_loss
        return self._passes.compute_loss(behind, model, inputs, return_outputs, **kwargs)

    def _warn(self, message: str) -> None:
        """Log a warning that all processes have alike, once."""
        if self.accelerator.is_main_process:
            logger.warning(message)

    def _warn_orphan(self, window: Window) -> None:
        if not self._orphan_warned:
            self._orphan_warned = True
            self._warn(
                f"The data ended after {window.size} of {self.args.gradient_accumulation_steps} "
                "micro-batches of an update; Trainer makes no update of them, so they are "
                "dropped. Said once."
            )

    # -- logs, checkpoints, cards ---------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Have the readings ready before Trainer writes its training log."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._pending_readings = self._means.drain(self._engine.average_)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._pending_readings = {}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the class behind, the training log with the `sam/` and `memory/` readings.

        What `compute_loss` logs is logged in the clean pass only.
        """
        if not self._passes.logs:
            return
        if "loss" in logs:
            logs.update(self._pending_readings)
        if self._memory is not None:
            self._memory.add_to(logs)
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save as the class behind, and the method's state."""
        super()._save_optimizer_and_scheduler(output_dir)
        if not isinstance(self._method, Plain):
            save_state(
                output_dir,
                self._method.describe(),
                self._method.state_dict(),
                self._parameters.names,
                self._parameters.params,
                self._engine,
                main=self.args.should_save,
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card as the class behind, with a tag and a section that names the method."""
        behind = super().create_model_card
        if isinstance(self._method, Plain):
            behind(*args, **kwargs)
            return
        given = inspect.signature(behind).bind(*args, **kwargs)
        tags = given.arguments.get("tags")
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        given.arguments["tags"] = [*tags, *(t for t in ("hf_sam",) if t not in tags)]
        behind(*given.args, **given.kwargs)
        card = Path(str(self.args.output_dir)) / "README.md"
        if self.is_world_process_zero() and card.is_file():
            key, method = main_method(self._method)
            described = json.dumps(self.sam_config, indent=2)
            section = (
                f"\n### Sharpness-aware minimization\n\nTrained with hf_sam {__version__}, method "
                f"`{key}` ({method.paper}):\n\n```json\n{described}\n```\n"
            )
            card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")

    @property
    def sam_config(self) -> dict[str, Any]:
        """The method with all its options, and where and how it is applied, as JSON can hold it."""
        names = ["sam_when", "sam_where", "sam_accumulation", "sam_ascent_sync"]
        names += ["sam_replay_rng", "sam_freeze_norm_stats"]
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
