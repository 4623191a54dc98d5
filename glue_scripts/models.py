# SPDX-License-Identifier: Apache-2.0
"""The model of a run: its configuration, tokenizer, classes and adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
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

from glue_scripts.arguments import ModelArguments
from glue_scripts.labels import HEAD, has_head, head_names
from glue_scripts.tasks import Task
from hf_sam.parts.base import nearest
from shared_scripts.errors import InputError, one_line
from shared_scripts.files import read_json

logger = logging.getLogger(__name__)


def load_config_and_tokenizer(
    args: ModelArguments,
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Load what must be known before the data is read.

    Raises:
        InputError: one of them cannot be loaded, or the tokenizer cannot pad.
    """
    options = args.download_options
    name = args.config_name or args.model_name_or_path
    flag = "model_name_or_path" if args.config_name is None else "config_name"
    config = _loaded(flag, name, "configuration", AutoConfig.from_pretrained, **options)
    name = args.tokenizer_name or args.model_name_or_path
    options = options | {"use_fast": args.use_fast_tokenizer}
    flag = "model_name_or_path" if args.tokenizer_name is None else "tokenizer_name"
    tokenizer = _loaded(flag, name, "tokenizer", AutoTokenizer.from_pretrained, **options)
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"the tokenizer of {name} has no pad token, so texts of different length make no "
            "batch: save one that has it (tokenizer.pad_token = tokenizer.eos_token; "
            "tokenizer.save_pretrained(DIR)) and give --tokenizer_name DIR"
        )
    return config, tokenizer


def _loaded(flag: str, name: str, what: str, load: Callable[..., Any], **options: Any) -> Any:
    try:
        return load(name, **options)
    except Exception as error:  # foreign files: anything can be raised while they are read
        hint = f"; --{what}_name gives another one" if what == "tokenizer" else ""
        raise InputError(f"--{flag} {name}: no {what}: {one_line(error)}{hint}") from error


def load_model(
    args: ModelArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    order: list[int],
) -> PreTrainedModel:
    """Load the weights under a head for the task, with LoRA adapters where asked for.

    Raises:
        InputError: the weights cannot be loaded, they have another head, or the adapters' target
            modules do not exist.
    """
    _warn_of_another_head(config, task)
    before = head_names(config)
    config.num_labels = task.num_labels
    config.problem_type = task.problem_type
    if not task.is_regression:
        config.label2id = dict(zip(task.labels, order, strict=True))
        config.id2label = {index: label for label, index in config.label2id.items()}
    _set_padding(config, tokenizer)
    trained = adapters_of(args.model_name_or_path)
    base = args.model_name_or_path if trained is None else trained["base_model_name_or_path"]
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            config=config,
            ignore_mismatched_sizes=args.ignore_mismatched_sizes,
            **args.download_options,
        )
        if trained is not None:
            require_peft()
            return _with_trained_adapters(model, args.model_name_or_path)
    except InputError:
        raise
    except Exception as error:  # foreign files: anything can be raised while they are read
        raise InputError(
            f"--model_name_or_path {args.model_name_or_path}: {_reason(error, before, task)}"
        ) from error
    return _add_adapters(model, args) if args.use_peft else model


def adapters_of(name: str) -> dict[str, Any] | None:
    """Return the description of the adapters that a folder holds instead of a whole model."""
    path = Path(name) / "adapter_config.json"
    return read_json(path) if path.is_file() else None


def _with_trained_adapters(model: PreTrainedModel, folder: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def _reason(error: Exception, before: tuple[str, ...], task: Task) -> str:
    """Say why weights cannot be loaded; a head of another size has its own remedy."""
    if "ignore_mismatched_sizes" not in str(error):
        return f"no model for sequence classification: {one_line(error)}"
    wanted = ", ".join(task.labels) or "one score"
    return (
        f"weights of it have another shape: its head has {len(before)} outputs "
        f"({', '.join(before)}), the task wants {task.num_labels} ({wanted}). "
        "--ignore_mismatched_sizes begins with a new head; to use this one, give the data of its "
        "own task"
    )


def _warn_of_another_head(config: PretrainedConfig, task: Task) -> None:
    """Say loudly that a head was trained for a task of another kind."""
    kinds = [name for name in config.architectures or [] if "For" in name]
    other = [name for name in kinds if not name.endswith(HEAD) and name.endswith("Classification")]
    if other:
        logger.warning(
            "The checkpoint is a %s: if its head has the same names and shapes, it is taken for "
            "this task's",
            other[0],
        )
    elif has_head(config) and config.problem_type not in (None, task.problem_type):
        logger.warning(
            "The checkpoint's head was trained for %s, and this task is %s",
            config.problem_type,
            task.problem_type,
        )


def _set_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model which token pads: decoders classify by the last one that does not."""
    own = getattr(config, "pad_token_id", None)
    if own is None:
        config.pad_token_id = tokenizer.pad_token_id
    elif own != tokenizer.pad_token_id:
        logger.warning(
            "The tokenizer pads with %d (%s), but the model's configuration says %d: is it the "
            "tokenizer of this model?",
            tokenizer.pad_token_id,
            tokenizer.pad_token,
            own,
        )


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
