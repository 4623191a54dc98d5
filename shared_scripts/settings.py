# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot work are refused before anything is loaded, not after the first epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from hf_sam.parts.base import nearest
from shared_scripts.errors import InputError, one_line

AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "save_total_limit": 1,
    "num_train_epochs": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "label_smoothing_factor": 0,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "neftune_noise_alpha": 0,
    "eval_delay": 0,
    "seed": 0,
    "data_seed": 0,
}
ABOVE_ZERO = ("eval_steps", "save_steps", "logging_steps")
BELOW: dict[str, float] = {"label_smoothing_factor": 1, "seed": 2**32, "data_seed": 2**32}
NEED_THE_MODEL = ("galore", "apollo", "lomo", "adalomo")
FIXED = {"label_names": None, "eval_do_concat_batches": True, "batch_eval_metrics": False}
CHECKPOINTING = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")  # by version
OF_EVERY_TASK = ("loss", "runtime", "samples_per_second", "steps_per_second")


def check(args: TrainingArguments) -> None:
    """Refuse what Trainer would find out late, or never.

    Raises:
        InputError: names the argument, its value and what is allowed.
    """
    _check_numbers(args)
    _check_output_dir(args)
    _check_reports(args)
    if args.do_train:
        _check_lengths(args)
        _check_checkpointing(args)
        _check_scheduler(args, _check_optimizer(args))


def check_enough(args: TrainingArguments, examples: int) -> None:
    """Refuse a training set of which `--dataloader_drop_last` leaves nothing.

    Raises:
        InputError: names the sizes.
    """
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and examples < batch:
        raise InputError(
            f"--dataloader_drop_last: {examples} examples make no batch of {batch}, so nothing "
            "would be trained; leave it out, or give a smaller --per_device_train_batch_size"
        )


def check_metric(args: TrainingArguments, names: Sequence[str]) -> None:
    """Refuse a `--metric_for_best_model` that no evaluation of this run will give.

    Args:
        args: of the run.
        names: of the task's metrics, without `eval_`.

    Raises:
        InputError: names the metrics that there are.
    """
    wanted = args.metric_for_best_model
    if wanted is None:
        return
    known = [*OF_EVERY_TASK[:1], *([] if args.prediction_loss_only else names), *OF_EVERY_TASK[1:]]
    if wanted.removeprefix("eval_") not in known:
        raise InputError(
            f"--metric_for_best_model {wanted}: this task has no such metric"
            f"{nearest(wanted, known)}. Metrics: {', '.join(known)}"
        )


def check_smoothing(args: TrainingArguments, problem_type: str) -> None:
    """Refuse label smoothing for labels that are no single class.

    Raises:
        InputError: the task is a regression, or has several labels per example.
    """
    if args.label_smoothing_factor and problem_type != "single_label_classification":
        raise InputError(
            f"--label_smoothing_factor {args.label_smoothing_factor}: smoothing is for tasks with "
            f"one class per example, and this one is a {problem_type}; leave it out"
        )


def _check_numbers(args: TrainingArguments) -> None:
    for name, least in AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise InputError(f"--{name} {value}: must be at least {least}")
    for name in ABOVE_ZERO:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name} {value}: must be above 0")
    for name, only in FIXED.items():
        if getattr(args, name) != only:
            raise InputError(
                f"--{name} {getattr(args, name)}: the metrics of this script need {only}; leave it "
                "out"
            )
    for name, end in BELOW.items():
        value = getattr(args, name)
        if value is not None and value >= end:
            raise InputError(f"--{name} {value}: must be below {end}")


def _check_lengths(args: TrainingArguments) -> None:
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(
            f"--num_train_epochs {args.num_train_epochs}: nothing would be trained; give more than "
            "0, or --max_steps"
        )


def _check_checkpointing(args: TrainingArguments) -> None:
    """Try torch's checkpointing of activations on one number."""
    for name in CHECKPOINTING:
        given = getattr(args, name, None)
        options = {"use_reentrant": False} | dict(given or {})
        try:
            checkpoint(torch.square, torch.ones(1, requires_grad=True), **options)
        except (ValueError, TypeError) as error:
            raise InputError(f"--{name} {given}: {one_line(error)}") from error


def _check_output_dir(args: TrainingArguments) -> None:
    """Find the nearest folder that exists, which must be one that can be written to."""
    folder = Path(str(args.output_dir)).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written to" if folder.is_dir() else "is a file, not a folder"
        raise InputError(f"--output_dir {args.output_dir}: {folder} {reason}; give another one")


def _check_reports(args: TrainingArguments) -> None:
    available = get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            known = [*sorted(INTEGRATION_TO_CALLBACK), "all", "none"]
            raise InputError(
                f"--report_to {name}: unknown{nearest(name, known)}. Known: {', '.join(known)}"
            )
        if name not in available:
            _check_installed(name)


def _check_installed(name: str) -> None:
    try:
        INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # every integration has its own way to say that it is missing
        raise InputError(
            f"--report_to {name}: {one_line(error)} (--report_to none reports to nothing)"
        ) from error


def _check_optimizer(args: TrainingArguments) -> torch.optim.Optimizer:
    """Build the optimizer for one number; return it, or any other where it wants the model."""
    one = torch.nn.Linear(1, 1)
    name = str(getattr(args.optim, "value", args.optim))
    if name.startswith(NEED_THE_MODEL):
        return torch.optim.SGD(one.parameters())
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        built = kind(list(one.parameters()), **options)
    except Exception as error:  # a foreign class may raise anything for a foreign argument
        given = f" with --optim_args {args.optim_args}" if args.optim_args else ""
        raise InputError(
            f"--optim {name}{given}: cannot be built (learning rate {args.learning_rate}, betas "
            f"{args.adam_beta1} and {args.adam_beta2}, epsilon {args.adam_epsilon}): "
            f"{one_line(error)}"
        ) from error
    _check_used(args, name, options)
    return built


def _check_used(args: TrainingArguments, name: str, options: dict[str, Any]) -> None:
    """Refuse `--optim_args` that the optimizer's options do not show."""
    if not args.optim_args:
        return
    without = copy(args)
    without.optim_args = None
    if str(Trainer.get_optimizer_cls_and_kwargs(without)[1]) == str(options):
        raise InputError(
            f"--optim_args {args.optim_args}: --optim {name} takes none of them; leave them out"
        )


def _check_scheduler(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=copy(args.lr_scheduler_kwargs),
        )
    except Exception as error:  # the same
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise InputError(
            f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {args.lr_scheduler_kwargs}: "
            f"cannot be built: {one_line(error)}"
        ) from error
