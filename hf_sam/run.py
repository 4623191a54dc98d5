# SPDX-License-Identifier: Apache-2.0
"""`Run`: one call of `train()`, from its preparation to its updates, logs and checkpoints."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import has_length

from .arguments import main_method, option
from .callbacks.memory import MemoryCallback
from .engine.accelerated import AcceleratedEngine
from .engine.checkpoint import load_state, save_state
from .engine.choice import check_optimizer, engine_for
from .engine.table import is_fsdp2, is_zero3, reentrant
from .host.adapters import Adapters
from .host.advice import advise_radius, from_checkpoint
from .host.checks import GIVEN, check_averaged
from .host.head import head_of
from .host.hooks import check_hooks
from .host.learning_rate import RateShare, largest_rate
from .host.logs import RunningMeans
from .host.losses import check_losses
from .host.measuring import Measuring
from .host.parameters import Parameters
from .host.passes import PassRunner
from .host.records import Records
from .host.state import Search
from .host.storing import useless
from .host.window import Window, check_cuttable, check_drawable, data_of, draw
from .landscape import Landscape, Progress, RandomStates, Replay, Store, Update, check_rounding
from .landscape.perturbation import refuse_complex
from .methods import Method, Plain, asks
from .parts.where import check_patterns, choose

logger = logging.getLogger(__name__)

NO_RECORDS = GIVEN - {"model", "compute_loss_func"} | {
    *("_method", "_passes", "_pending_readings", "_run", "_sam_given", "_window", "_windows"),
}
"""Attributes that no pass changes: a Trainer's arguments, and those of the mixin itself."""


class Run:
    """One training run of a Trainer with a method.

    Args:
        trainer: the Trainer.
        passes: the object that runs its passes.
        method: the method, which is new for this run.

    Attributes:
        method: the method.
        engine: the machinery of processes and precision; known once the run is prepared.
        parameters: the parameters that the optimizer trains.
        means: the means of log values since the last log.
        memory: the callback that measures memory, if there is one.
    """

    engine: AcceleratedEngine
    parameters: Parameters

    def __init__(self, trainer: Any, passes: PassRunner, method: Method) -> None:
        self._trainer, self._passes, self.method = trainer, passes, method
        self._measuring: Measuring | None = None
        self._records = self._new_records()
        self.means = RunningMeans()
        self.memory: MemoryCallback | None = None
        # Looked at here, as an engine may put other parameters in the place of these.
        self._loaded = from_checkpoint(trainer.model.parameters())

    def _new_records(self) -> Records:
        """Return the store of the state that passes change."""
        trainer, args = self._trainer, self._trainer.args
        search = Search(
            norm_statistics=option(args, "sam_freeze_norm_stats"),
            generators=option(args, "sam_replay_rng"),
            weights=not (is_fsdp2(trainer) or is_zero3(trainer)),
        )
        # A method that the user has replaced on the object is not restored, nor is what it counts.
        replaced = {name for name in vars(trainer) if callable(getattr(type(trainer), name, None))}
        return Records(
            trainer,
            NO_RECORDS | replaced,
            search,
            self._trained,
            keeps=lambda: self._passes.asked,
        )

    def _trained(self) -> list[Tensor]:
        groups = getattr(self._trainer.optimizer, "param_groups", [])
        return [p for group in groups for p in group["params"]]

    def new_replay(self, random: bool) -> Replay:
        """Return a replay of all state, and of the random numbers if asked for."""
        stores: list[Store] = [self._records]
        if random:
            stores.append(RandomStates({p.device for p in self._trainer.model.parameters()}))
        return Replay(stores, self._passes.around)

    # -- before the first update ----------------------------------------------------------------

    def prepare(self, model: nn.Module, loader: Any, total: int) -> None:
        """Prepare the run for its optimizer, parameters and data, and refuse what cannot be right.

        Args:
            model: the model as accelerate prepared it.
            loader: the loader of the training data.
            total: the number of updates in the run.
        """
        trainer = self._trainer
        check_hooks(trainer.model.named_parameters())
        check_optimizer(trainer.optimizer, trainer.args)
        self.memory = self._memory_callback()
        self._passes.reentrant = reentrant(trainer)
        replay = self.new_replay(option(trainer.args, "sam_replay_rng"))
        local = self._local_ascent()
        self.engine = engine_for(trainer, model, replay, local, self._passes.reentrant)
        self._find_parameters()
        self._rate_share = RateShare(trainer.optimizer, trainer.lr_scheduler, total)
        # A schedule of the user's own may warm up without the arguments' knowing it.
        self._warmup = max(trainer.args.get_warmup_steps(total), self._rate_share.warmup)
        self._warn_of_schedule()
        if self._loaded and option(trainer.args, "sam_rho") is None:
            advise_radius(*main_method(self.method), trainer._warn)
        batches = len(loader) if has_length(loader) else None
        self._per_epoch = batches and math.ceil(batches / trainer.args.gradient_accumulation_steps)
        self._check_data_needs(loader)

    def _find_parameters(self) -> None:
        trainer, patterns = self._trainer, option(self._trainer.args, "sam_where")
        read = partial(self.engine.params, trainer.optimizer)
        self.parameters = known = Parameters(trainer.model, read, partial(choose, patterns))
        self._adapters = Adapters(trainer.model, known)
        check_patterns(patterns, known.params, known.names, trainer.model)
        refuse_complex(known.params, known.names)
        self._check_storing()
        inside = [name for name, _ in trainer.model.named_parameters()]
        check_averaged(known.names, inside, trainer.accelerator.num_processes)
        self.engine.outside = known.outside

    def _check_storing(self) -> None:
        """Refuse or warn of ways to store perturbed weights that fail or gain nothing."""
        trainer, params = self._trainer, self.parameters.params
        rounding, offload = (option(trainer.args, f"sam_{n}") for n in ("rounding", "offload"))
        check_rounding(rounding, params, self.parameters.names)
        for warning in useless(rounding, offload, params, trainer.model):
            trainer._warn(warning)

    def _local_ascent(self) -> bool:
        sync = option(self._trainer.args, "sam_ascent_sync")
        return sync == "local" or (sync == "auto" and self.method.local_ascent)

    def _memory_callback(self) -> MemoryCallback | None:
        """Return the user's callback, or add the one that `sam_track_memory` asks for."""
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, MemoryCallback):
                return callback
        if not option(self._trainer.args, "sam_track_memory"):
            return None
        self._trainer.add_callback(MemoryCallback())
        return self._memory_callback()

    def _warn_of_schedule(self) -> None:
        when = self.method.when
        remark = when and when.remark(self._rate_share.to_come(self._warmup))
        if remark:
            self._trainer._warn(remark)

    def _check_data_needs(self, loader: Any) -> None:
        """Refuse a method whose needs the data cannot meet, and log the groups of a method."""
        trainer, name = self._trainer, self.method.describe()["name"]
        steps, ranks = trainer.args.gradient_accumulation_steps, trainer.accelerator.num_processes
        wanted = asks(self.method, steps)
        if wanted.layers:
            whole = self.engine.replicated or not wanted.changes
            self._adapters.check(type(main_method(self.method)[1]).__name__, whole)
        if wanted.draws:
            check_drawable(loader, name)
        if wanted.losses and not self._passes.own_losses:
            check_losses(trainer, name)
        main = main_method(self.method)[1]
        used = not (main.needs_here or wanted.losses or wanted.head or isinstance(main, Plain))
        self._passes.ascent.check(name, used=used)
        if wanted.head:
            self._passes.head = head_of(trainer, self.method, name, self.engine.replay)
        if wanted.examples:
            check_cuttable(trainer, name)
            self._measuring = Measuring(trainer, self._passes, name, wanted.losses)
        apart = ranks if self.engine.local_ascent else 1
        if wanted.groups * apart > 1 and trainer.accelerator.is_main_process:
            logger.info(
                f"{name} perturbs {wanted.groups * apart} groups of an update's examples "
                f"separately: {wanted.groups} on each of {apart} ranks, cut from {steps} "
                "micro-batches in a row."
            )

    # -- one update -----------------------------------------------------------------------------

    def update(self, window: Window) -> Tensor:
        """Run the method on the data of an update, and write its result to `p.grad`.

        Returns:
            The `()` clean loss of the update.
        """
        if self._measuring is not None:
            self._measuring.look(window)
        self.engine.start()
        self._passes.start()
        self._look_at_parameters()
        at = self._landscape(window)
        update = self.method(at)
        self._passes.settle()
        self._records.settle()
        # An update that loss scaling skips is logged as skipped, too.
        overflow = self.engine.give(self.parameters.params, update)
        if overflow is not None:
            at.skip(overflow)
        self.means.add(at.readings)
        assert at.loss is not None, "a method makes at least one pass"
        return at.loss

    def _look_at_parameters(self) -> None:
        """Adapt to parameter groups that were added, and to layers that were frozen or unfrozen."""
        places = self.parameters.changes()
        if places is not None:
            self.engine.outside = self.parameters.outside
            self.method.realign(places, self.engine.placement)

    def _landscape(self, window: Window) -> Landscape:
        """Return the Landscape of the window's data."""
        trainer, passes, model = self._trainer, self._passes, self.engine.model
        update = Update(
            params=self.parameters.params,
            backward=partial(passes.backward, model, window),
            perturbable=self.parameters.perturbable,
            progress=self._progress(),
            seed=trainer.args.seed,
            names=self.parameters.names,
            per_example=partial(passes.per_example, model, window),
            sample=partial(draw, trainer, self.engine),
            layers=self._adapters,
            engine=self.engine,
            rounding=option(trainer.args, "sam_rounding"),
            offload=option(trainer.args, "sam_offload"),
            two_losses=self._passes.ascent.given,
            cosine=self.means.want_cosine(trainer.state.global_step),
            on_phase=self._announce,
        )
        return Landscape.of(update, data_of(window, passes.ops, passes.items, passes.ranks_counted))

    def _announce(self, phase: str) -> None:
        """Tell the passes and the memory callback that a phase of the update begins."""
        self._passes.announce(phase)
        if self.memory is not None:
            self.memory.announce(phase)

    def _progress(self) -> Progress:
        state = self._trainer.state
        return Progress(
            step=state.global_step,
            total=state.max_steps,
            warmup=self._warmup,
            per_epoch=self._per_epoch,
            lr_ratio=self._rate_share(),
            learning_rate=largest_rate(self._trainer.optimizer),
        )

    # -- logs and checkpoints -------------------------------------------------------------------

    def drain(self) -> dict[str, float]:
        """Return the means of the log values since the last log, and start new ones."""
        return self.means.drain(self.engine.average_)

    def save(self, folder: str) -> None:
        """Write the method's state into a checkpoint."""
        save_state(
            folder,
            self.method.describe(),
            self.method.state_dict(),
            self.parameters.names,
            self.parameters.params,
            self.engine,
            main=self._trainer.args.should_save,
        )

    def load(self, folder: str) -> None:
        """Load the method's state from a checkpoint."""
        method, known = self.method, self.parameters
        where = method.describe(), known.names, known.params, self.engine
        method.load_state_dict(load_state(folder, *where, method.keeps_state, self._trainer._warn))
