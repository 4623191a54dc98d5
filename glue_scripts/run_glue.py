#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune a text classifier on GLUE or on your own files, with or without SAM.

python glue_scripts/run_glue.py --model_name_or_path DIR_OR_HUB_ID --task_name mrpc \
    --sam sam --sam_rho 0.05 --do_train --do_eval --output_dir out

Heavy imports wait until they are needed, so that `--help` and errors come quickly.
"""

from __future__ import annotations

import logging
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
    from glue_scripts.results import UpdateTimer
    from hf_sam import SAMTrainer, SAMTrainingArguments
    from hf_sam.callbacks import MemoryCallback


@dataclass
class Run:
    """A run that is ready to start.

    Attributes:
        trainer: with model, training data and metrics.
        task: what is learned.
        validation: name of the evaluation ("mrpc", "mnli", "mnli-mm") -> tokens.
        test: the same for prediction.
        resume_from: checkpoint folder, or None.
        timer: of the updates.
        origin: command, arguments and versions, for the results.
    """

    trainer: SAMTrainer
    task: Task
    validation: dict[str, Dataset]
    test: dict[str, Dataset]
    resume_from: str | None
    timer: UpdateTimer
    origin: dict[str, Any]


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
    resume_from = _checkpoint(args)
    _set_up_logging(args)
    run = prepare(model_args, data_args, args, resume_from, words)
    metrics: dict[str, Any] = {}
    if args.do_train:
        metrics |= train(run)
    if args.do_eval:
        metrics |= evaluate(run)
    if args.do_predict:
        metrics |= predict(run)
    _describe(run.trainer, model_args, data_args)
    return metrics


def _checkpoint(args: SAMTrainingArguments) -> str | None:
    """Return the checkpoint to resume from; refuse to train over one that is not resumed."""
    from transformers.trainer_utils import get_last_checkpoint

    from glue_scripts.arguments import InputError

    found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    wanted = str(args.resume_from_checkpoint or "no")
    if wanted.lower() in ("no", "false"):
        if args.do_train and found is not None:
            raise InputError(
                f"--output_dir {args.output_dir} holds a checkpoint ({Path(found).name}): go on "
                f"from it with --resume_from_checkpoint {found}, or give another --output_dir"
            )
        return None
    path = found if wanted.lower() in ("yes", "true") else wanted
    if path is None or not Path(path).is_dir():
        raise InputError(
            f"--resume_from_checkpoint {wanted}: there is no such checkpoint "
            f"(--output_dir {args.output_dir} holds {found or 'none'})"
        )
    return path


def _set_up_logging(args: SAMTrainingArguments) -> None:
    import datasets
    import transformers

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(sys.stdout)],
    )
    level = args.get_process_log_level()
    logging.getLogger("glue_scripts").setLevel(level)
    datasets.utils.logging.set_verbosity(level)
    transformers.utils.logging.set_verbosity(level)


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
    from glue_scripts.results import origin

    stages = _stages(args)
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
        data.task,
        validation=sets.get("validation", {}),
        test=sets.get("test", {}),
        resume_from=resume_from,
        timer=timer,
        origin=origin((model_args, data_args, args), argv),
    )


def _stages(args: SAMTrainingArguments) -> list[str]:
    from glue_scripts.arguments import InputError

    wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    stages = [stage for stage, is_wanted in wanted.items() if is_wanted]
    if not stages:
        raise InputError("nothing to do: give at least one of --do_train --do_eval --do_predict")
    return stages


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
    from glue_scripts.results import UpdateTimer
    from hf_sam import SAMTrainer

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


def train(run: Run) -> dict[str, Any]:
    """Train, save the model and the results, and return the metrics."""
    from glue_scripts.results import PeakMemory, save_results

    trainer = run.trainer
    tracked = _memory_callback(trainer)
    with PeakMemory(trainer.args.device, tracked=tracked) as peak:
        metrics = trainer.train(resume_from_checkpoint=run.resume_from).metrics
    metrics |= {"train_samples": len(trainer.train_dataset)} | run.timer.metrics()
    trainer.save_model()
    trainer.save_state()
    save_results(trainer, "train", metrics, peak, run.origin)
    return metrics


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
    from glue_scripts.results import PeakMemory, save_results

    metrics: dict[str, Any] = {}
    with PeakMemory(run.trainer.args.device) as peak:
        for name, data in run.validation.items():
            scores = run.trainer.evaluate(eval_dataset=data) | {"eval_samples": len(data)}
            suffix = "_mm" if name == "mnli-mm" else ""
            metrics |= {key + suffix: value for key, value in scores.items() if key != "epoch"}
    save_results(run.trainer, "eval", metrics, peak, run.origin)
    return metrics


def predict(run: Run) -> dict[str, Any]:
    """Write the predictions for every test set; return metrics where the labels are known."""
    from glue_scripts.metrics import predicted
    from glue_scripts.results import PeakMemory, save_results, write_predictions

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


def _describe(
    trainer: SAMTrainer, model_args: ModelArguments, data_args: DataTrainingArguments
) -> None:
    """Write the model card, or push it with the model."""
    card: dict[str, Any] = {"tasks": "text-classification"}
    if not Path(model_args.model_name_or_path).is_dir():  # a card names models of the Hub only
        card["finetuned_from"] = model_args.model_name_or_path
    if data_args.task_name is not None:
        card |= {
            "language": "en",
            "dataset_tags": "glue",
            "dataset_args": data_args.task_name,
            "dataset": f"GLUE {data_args.task_name.upper()}",
        }
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def command_line() -> None:
    """Run `main`; an InputError is one line, without a traceback."""
    from glue_scripts.arguments import InputError

    try:
        main()
    except InputError as error:
        sys.exit(f"run_glue.py: error: {error}")


if __name__ == "__main__":
    command_line()
