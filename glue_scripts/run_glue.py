#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune a text classifier on GLUE or on your own files, with or without SAM.

python glue_scripts/run_glue.py --model_name_or_path DIR_OR_HUB_ID --task_name mrpc \
    --sam sam --sam_rho 0.05 --do_train --do_eval --output_dir out

Heavy imports wait until they are needed, so that `--help` and errors come quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from datasets import Dataset

    from glue_scripts.arguments import DataTrainingArguments, ModelArguments, Task
    from hf_sam import SAMTrainer, SAMTrainingArguments
    from shared_scripts.results import UpdateTimer

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

    Raises:
        InputError: something that was given cannot be used; raised before the first update.
    """
    from glue_scripts.arguments import parse_arguments

    words = sys.argv[1:] if argv is None else argv
    model_args, data_args, args = parse_arguments(words)
    resume_from = running.checkpoint(args)
    running.set_up_logging(args, "glue_scripts")
    run = prepare(model_args, data_args, args, resume_from, words)
    metrics: dict[str, Any] = {}
    if args.do_train:
        metrics |= running.train(run)
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

    from glue_scripts import models
    from glue_scripts.data import load_data, tokenize
    from shared_scripts.results import origin

    stages = running.wanted_stages(args)
    if model_args.use_peft:
        models.require_peft()
    set_seed(args.seed)
    config, tokenizer = models.load_config_and_tokenizer(model_args)
    with args.main_process_first(desc="reading the data"):
        data = load_data(data_args, stages, config, model_args.cache_dir, model_args.token)
    order = models.label_order(config, data.task)
    length = models.max_length(data_args.max_seq_length, tokenizer, config)
    model = models.load_model(model_args, config, tokenizer, data.task, order)
    with args.main_process_first(desc="tokenizing"):
        sets = {
            stage: {
                name: tokenize(part, data.task, tokenizer, order, length, data_args)
                for name, part in parts.items()
            }
            for stage, parts in data.parts.items()
        }
    trainer, timer = _build_trainer(model, args, data_args, tokenizer, data.task, order, sets)
    return Run(
        trainer,
        validation=sets.get("validation", {}),
        resume_from=resume_from,
        timer=timer,
        origin=origin("glue_scripts/run_glue.py", (model_args, data_args, args), argv),
        task=data.task,
        test=sets.get("test", {}),
    )


def _build_trainer(
    model: Any,
    args: SAMTrainingArguments,
    data_args: DataTrainingArguments,
    tokenizer: Any,
    task: Task,
    order: list[int],
    sets: dict[str, dict[str, Dataset]],
) -> tuple[SAMTrainer, UpdateTimer]:
    from transformers import DataCollatorWithPadding, default_data_collator

    from glue_scripts.metrics import metric_function
    from hf_sam import SAMTrainer
    from shared_scripts.results import UpdateTimer

    timer = UpdateTimer()
    in_half = args.fp16 or args.bf16  # tensor cores want multiples of 8
    dynamic = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if in_half else None)
    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=sets.get("train", {}).get("train"),
        eval_dataset=next(iter(sets.get("validation", {}).values()), None),
        processing_class=tokenizer,
        data_collator=default_data_collator if data_args.pad_to_max_length else dynamic,
        compute_metrics=metric_function(task, order),
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
            found = predicted(output.predictions, run.task).tolist()
            if not run.task.is_regression:
                found = [trainer.model.config.id2label[index] for index in found]
            if trainer.is_world_process_zero():
                write_predictions(
                    Path(trainer.args.output_dir) / f"predict_results_{name}.txt", found
                )
    save_results(trainer, "predict", metrics, peak, run.origin)
    return metrics


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
