# SPDX-License-Identifier: Apache-2.0
"""One run of a script: where it resumes, what it logs, its stages and their results."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_scripts.checkpoints import checkpoint
from shared_scripts.errors import InputError, one_line

if TYPE_CHECKING:
    from hf_sam import SAMTrainer, SAMTrainingArguments
    from hf_sam.callbacks import MemoryCallback
    from shared_scripts.results import UpdateTimer

__all__ = ["Run", "checkpoint", "command_line", "describe", "evaluate", "train", "wanted_stages"]

logger = logging.getLogger(__name__)

BEFORE_TRAINING = (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError, OSError)
STAGES = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}


@dataclass
class Run:
    """A run that is ready to start.

    Attributes:
        trainer: with model, training data and metrics.
        validation: name of the evaluation ("mrpc", "mnli", "mnli-mm") -> examples.
        resume_from: checkpoint folder, or None.
        timer: of the updates.
        origin: command, arguments and versions, for the results.
        metric_names: what every evaluation measures beside the loss.
    """

    trainer: SAMTrainer
    validation: dict[str, Any]
    resume_from: str | None
    timer: UpdateTimer
    origin: dict[str, Any]
    metric_names: Sequence[str] = field(default=("accuracy",), kw_only=True)


def set_up_logging(args: SAMTrainingArguments, package: str) -> None:
    """Log to the standard output, at the level that the arguments say.

    Args:
        args: of the run.
        package: the script's, whose loggers are set beside those of the libraries.
    """
    import datasets
    import transformers

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = args.get_process_log_level()
    for name in (package, "shared_scripts"):
        logging.getLogger(name).setLevel(level)
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)


def wanted_stages(args: SAMTrainingArguments, known: Sequence[str] = tuple(STAGES)) -> list[str]:
    """Return which of the stages in `known` the arguments ask for.

    Raises:
        InputError: none, or one that the script does not have.
    """
    stages = [stage for stage, flag in STAGES.items() if getattr(args, flag)]
    flags = " ".join(f"--{STAGES[stage]}" for stage in known)
    for stage in stages:
        if stage not in known:
            raise InputError(f"--{STAGES[stage]}: this script has only {flags}")
    if not stages:
        raise InputError(f"nothing to do: give at least one of {flags}")
    return stages


def data_seed(args: SAMTrainingArguments) -> int:
    """Return the seed of what is drawn from the data before the training."""
    return args.seed if args.data_seed is None else args.data_seed


def train(run: Run) -> dict[str, Any]:
    """Train, save the model and the results, and return the metrics.

    Raises:
        InputError: the training cannot begin; what fails after the first update is not caught.
    """
    from shared_scripts.results import PeakMemory, save_results
    from shared_scripts.settings import check_enough, check_metric

    trainer = run.trainer
    check_metric(trainer.args, run.metric_names)
    check_enough(trainer.args, len(trainer.train_dataset))
    _check_where(trainer)
    with PeakMemory(trainer.args.device, tracked=_memory_callback(trainer)) as peak:
        metrics = _trained(run)
    metrics |= {"train_samples": len(trainer.train_dataset)} | run.timer.metrics()
    trainer.save_model()
    trainer.save_state()
    save_results(trainer, "train", metrics, peak, run.origin)
    return metrics


def _trained(run: Run) -> dict[str, Any]:
    """Train; what is refused before an update begins comes from the settings."""
    try:
        return dict(run.trainer.train(resume_from_checkpoint=run.resume_from).metrics)
    except BEFORE_TRAINING as error:
        if run.timer.has_begun:
            raise
        logger.debug("the training cannot begin", exc_info=True)
        raise InputError(f"the training cannot begin: {one_line(error, 1000)}") from error


def build_trainer(**parts: Any) -> SAMTrainer:
    """Return the trainer of these parts; what it refuses comes from the settings.

    Raises:
        InputError: it refuses something.
    """
    from hf_sam import SAMTrainer

    try:
        return SAMTrainer(**parts)
    except BEFORE_TRAINING as error:
        logger.debug("no trainer can be built", exc_info=True)
        raise InputError(f"no trainer can be built: {one_line(error, 1000)}") from error


def _check_where(trainer: SAMTrainer) -> None:
    """Try `--sam_where` on the model: what it does not match is the user's to mend."""
    from hf_sam.parts.where import check_patterns

    names, params = zip(*trainer.model.named_parameters(), strict=True)
    try:
        check_patterns(trainer.args.sam_where, params, names, trainer.model)
    except ValueError as error:
        raise InputError(f"--{error}") from error


def _memory_callback(trainer: SAMTrainer) -> MemoryCallback | None:
    """Return the trainer's callback for memory, added here rather than by the trainer itself."""
    from hf_sam.callbacks import MemoryCallback

    if not trainer.args.sam_track_memory:
        return None
    callback = MemoryCallback()
    trainer.add_callback(callback)
    return callback


def evaluate(run: Run) -> dict[str, Any]:
    """Evaluate on every validation set; MNLI's mismatched metrics end in `_mm`."""
    from shared_scripts.results import PeakMemory, save_results

    metrics: dict[str, Any] = {}
    with PeakMemory(run.trainer.args.device) as peak:
        for name, data in run.validation.items():
            scores = run.trainer.evaluate(eval_dataset=data) | {"eval_samples": len(data)}
            suffix = "_mm" if name == "mnli-mm" else ""
            metrics |= {k if k == "epoch" else k + suffix: v for k, v in scores.items()}
    save_results(run.trainer, "eval", metrics, peak, run.origin)
    return metrics


def describe(run: Run, base: str | None, **card: Any) -> None:
    """Write the model card, or push it with the model.

    Args:
        run: after its stages.
        base: the model that it started from; a card names models of the Hub only.
        **card: as `create_model_card` takes it.
    """
    if base is not None and not Path(base).is_dir():
        card["finetuned_from"] = base
    if run.trainer.args.push_to_hub:
        run.trainer.push_to_hub(**card)
    else:
        run.trainer.create_model_card(**card)


def command_line(main: Callable[[], Any], script: str) -> None:
    """Run `main`; an InputError is one line, without a traceback, and the exit status is 2.

    Args:
        main: beside its `arguments.py`, which `--help` is read off.
        script: its name.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        from shared_scripts.usage import show

        print(show(Path(inspect.getfile(main)).parent, script), end="")
        return
    try:
        main()
    except InputError as error:
        print(f"{script}: error: {one_line(str(error), 4000)}", file=sys.stderr)
        sys.exit(2)
