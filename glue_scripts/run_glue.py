#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune a text classifier on GLUE or on your own files, with or without SAM.

python glue_scripts/run_glue.py --model_name_or_path DIR_OR_HUB_ID --task_name mrpc \
    --sam sam --sam_rho 0.05 --do_train --do_eval --output_dir out

Heavy imports wait until they are needed, so that `--help` and errors come quickly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from glue_scripts.arguments import Arguments, DataTrainingArguments, ModelArguments
    from glue_scripts.data import GlueData
    from glue_scripts.tasks import Task
    from hf_sam import SAMTrainer, SAMTrainingArguments
    from shared_scripts.results import UpdateTimer

    Sets = dict[str, dict[str, Dataset]]

from shared_scripts import running


@dataclass
class Run(running.Run):
    """A run that is ready to start.

    Attributes:
        task: what is learned.
        test: name of the task -> tokens to predict on.
    """

    task: Task
    test: dict[str, Dataset]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what the arguments say and return all metrics.

    Args:
        argv: flags, after an optional file of arguments; default: the command line's.

    Returns:
        The metrics; of several tasks or seeds their means, with the task's name before them.

    Raises:
        InputError: something that was given cannot be used; raised before the first update.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    from glue_scripts import many
    from glue_scripts.arguments import parse_arguments

    parsed = parse_arguments(words)
    running.set_up_logging(parsed[2], "glue_scripts")
    planned = many.plan(words, parsed)
    if not planned:
        return run_one(parsed, words)
    found = [(run, run_one(parse_arguments(run.words), run.words)) for run in planned]
    return many.summarise(found, parsed[2])


def run_one(arguments: Arguments, words: Sequence[str]) -> dict[str, Any]:
    """Do what the arguments say, for one task and one seed, and return all metrics.

    Args:
        arguments: parsed.
        words: the command line that they came from.

    Raises:
        InputError: something that was given cannot be used; raised before the first update.
    """
    model_args, data_args, args = arguments
    resume_from = running.checkpoint(args)
    run = prepare(model_args, data_args, args, resume_from, words)
    metrics: dict[str, Any] = {}
    if args.do_train:
        metrics |= running.train(run)
        _save_config(run)
    if args.do_eval:
        metrics |= running.evaluate(run)
    if args.do_predict:
        metrics |= predict(run)
    _describe(run, model_args, data_args)
    return metrics


def prepare(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: SAMTrainingArguments,
    resume_from: str | None = None,
    argv: Sequence[str] = (),
) -> Run:
    """Check everything, the cheapest first, and build the trainer."""
    from transformers import set_seed

    from glue_scripts import fit, models
    from glue_scripts.data import load_data
    from glue_scripts.labels import label_order
    from glue_scripts.metrics import metric_names
    from shared_scripts import settings
    from shared_scripts.results import origin

    stages = running.wanted_stages(args)
    if model_args.use_peft:
        models.require_peft()
    set_seed(args.seed)
    config, tokenizer = models.load_config_and_tokenizer(model_args)
    with args.main_process_first(desc="reading the data"):
        where = (model_args.cache_dir, model_args.token, running.data_seed(args))
        data = load_data(data_args, stages, config, *where)
    settings.check_metric(args, metric_names(data.task))
    settings.check_smoothing(args, data.task.problem_type)
    order = label_order(config, data.task)
    model = models.load_model(model_args, config, tokenizer, data.task, order)
    pair = len(data.task.keys) > 1
    length = fit.max_length(data_args.max_seq_length, tokenizer, model, pair)
    collate = _collator(args, data_args, tokenizer)
    sets = _tokenize(data, tokenizer, order, length, data_args, args)
    for stage, parts in data.parts.items():
        for name, part in parts.items():
            fit.check(model, sets[stage][name], part.source, tokenizer, collate)
    trainer, timer = _build_trainer(
        model, args, collate, tokenizer, data.task, order, sets, model_args.trust_remote_code
    )
    return Run(
        trainer,
        validation=sets.get("validation", {}),
        resume_from=resume_from,
        timer=timer,
        origin=origin("glue_scripts/run_glue.py", (model_args, data_args, args), argv),
        metric_names=metric_names(data.task),
        task=data.task,
        test=sets.get("test", {}),
    )


def _save_config(run: Run) -> None:
    """Write the configuration beside adapters, which hold no names of classes."""
    model = run.trainer.model
    if hasattr(model, "get_base_model") and run.trainer.is_world_process_zero():
        model.get_base_model().config.save_pretrained(run.trainer.args.output_dir)


def _tokenize(
    data: GlueData,
    tokenizer: Any,
    order: list[int],
    length: int,
    data_args: DataTrainingArguments,
    args: SAMTrainingArguments,
) -> Sets:
    from glue_scripts.tokens import tokenize

    with args.main_process_first(desc="tokenizing"):
        return {
            stage: {
                name: tokenize(part, data.task, tokenizer, order, length, data_args)
                for name, part in parts.items()
            }
            for stage, parts in data.parts.items()
        }


def _collator(args: SAMTrainingArguments, data_args: DataTrainingArguments, tokenizer: Any) -> Any:
    from transformers import DataCollatorWithPadding, default_data_collator

    if data_args.pad_to_max_length:
        return default_data_collator
    in_half = args.fp16 or args.bf16  # tensor cores want multiples of 8
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if in_half else None)


def _build_trainer(
    model: Any,
    args: SAMTrainingArguments,
    collate: Any,
    tokenizer: Any,
    task: Task,
    order: list[int],
    sets: Sets,
    remote: bool,
) -> tuple[SAMTrainer, UpdateTimer]:
    from glue_scripts.metrics import metric_function
    from shared_scripts.results import UpdateTimer

    timer = UpdateTimer()
    trainer = running.build_trainer(
        model=model,
        args=args,
        train_dataset=sets.get("train", {}).get("train"),
        eval_dataset=next(iter(sets.get("validation", {}).values()), None),
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=metric_function(task, order, remote),
        callbacks=[timer],
    )
    return trainer, timer


def predict(run: Run) -> dict[str, Any]:
    """Write the predictions for every test set; return metrics where the labels are known."""
    from glue_scripts.metrics import predicted
    from shared_scripts.results import PeakMemory, save_results, write_predictions

    trainer = run.trainer
    metrics: dict[str, Any] = {}
    with PeakMemory(trainer.args.device) as peak:
        for name, data in run.test.items():
            output = trainer.predict(data, metric_key_prefix="predict")
            suffix = "_mm" if name == "mnli-mm" else ""
            scores = output.metrics | {"predict_samples": len(data)}
            metrics |= {key + suffix: value for key, value in scores.items()}
            found = _in_words(predicted(output.predictions, run.task), run)
            if trainer.is_world_process_zero():
                folder = Path(trainer.args.output_dir)
                write_predictions(folder / f"predict_results_{name}.txt", found)
    save_results(trainer, "predict", metrics, peak, run.origin)
    return metrics


def _in_words(found: np.ndarray, run: Run) -> list[float] | list[str]:
    """Return predictions as they are written: scores, names, or JSON lists of names."""
    names = run.trainer.model.config.id2label
    if run.task.is_regression:
        return [float(score) for score in found]
    if run.task.is_multi_label:
        rows = [[names[index] for index in row.nonzero()[0]] for row in found]
        return [json.dumps(row, ensure_ascii=False) for row in rows]
    return [names[index] for index in found]


def _describe(run: Run, model_args: ModelArguments, data_args: DataTrainingArguments) -> None:
    """Write the model card, or push it with the model."""
    card: dict[str, Any] = {"tasks": "text-classification"}
    if data_args.task_name is not None:
        card |= {
            "language": "en",
            "dataset_tags": "glue",
            "dataset_args": data_args.task_name,
            "dataset": f"GLUE {data_args.task_name.upper()}",
        }
    running.describe(run, model_args.model_name_or_path, **card)


if __name__ == "__main__":
    running.command_line(main, "run_glue.py")
