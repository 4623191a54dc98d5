# SPDX-License-Identifier: Apache-2.0
"""The model of a run: its configuration, tokenizer, classes and adapters."""

from __future__ import annotations

import logging
from typing import Any

from torch.nn import Linear
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glue_scripts.arguments import InputError, ModelArguments, Task
from glue_scripts.data import label_names
from hf_sam.parts.base import nearest

logger = logging.getLogger(__name__)


def load_config_and_tokenizer(
    args: ModelArguments,
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Load what must be known before the data is read.

    Raises:
        InputError: the tokenizer cannot pad.
    """
    options = args.download_options
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, **options)
    name = args.tokenizer_name or args.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=args.use_fast_tokenizer, **options)
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"the tokenizer of {name} has no pad token, so texts of different length make no "
            "batch: save one that has it (tokenizer.pad_token = tokenizer.eos_token; "
            "tokenizer.save_pretrained(DIR)) and give --tokenizer_name DIR"
        )
    return config, tokenizer


def label_order(config: PretrainedConfig, task: Task) -> list[int]:
    """Return, for each class of the task, its place in the model's head.

    A model that was trained on the same classes keeps its own order; any other takes the task's.
    """
    names = [name.lower() for name in label_names(config)]
    labels = [label.lower() for label in task.labels]
    if sorted(names) == sorted(labels):
        return [names.index(label) for label in labels]
    return list(range(task.num_labels))


def max_length(wanted: int, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Return `wanted`, or with a warning the largest number of tokens that the model takes."""
    positions = getattr(config, "max_position_embeddings", None) or wanted
    limit = min(tokenizer.model_max_length, positions)
    if wanted > limit:
        logger.warning("--max_seq_length %d is more than the model takes: using %d", wanted, limit)
    return min(wanted, limit)


def load_model(
    args: ModelArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    order: list[int],
) -> PreTrainedModel:
    """Load the weights under a head for the task, with LoRA adapters where asked for.

    Raises:
        InputError: the adapters' target modules do not exist.
    """
    config.num_labels = task.num_labels
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    if not task.is_regression:
        config.label2id = dict(zip(task.labels, order, strict=True))
        config.id2label = {index: label for label, index in config.label2id.items()}
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        **args.download_options,
    )
    return _add_adapters(model, args) if args.use_peft else model


def require_peft() -> None:
    """Raise an InputError if peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError("--use_peft needs the package peft: pip install peft") from error


def _add_adapters(model: PreTrainedModel, args: ModelArguments) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets: Any = args.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    elif targets is not None:
        _check_targets(model, targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"--use_peft: {error} (--lora_target_modules names them)") from error


def _check_targets(model: PreTrainedModel, targets: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, Linear)}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"--lora_target_modules {target}: {type(model).__name__} has no such module"
                f"{nearest(target, linear)}. Its linear layers: {', '.join(sorted(linear))}; "
                "all-linear takes them all but the head"
            )
