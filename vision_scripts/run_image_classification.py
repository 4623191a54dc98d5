#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Train an image classifier on a dataset or on your own images, with or without SAM.

python vision_scripts/run_image_classification.py --recipe cifar10-resnet18-sam --output_dir out
python vision_scripts/run_image_classification.py --model_name_or_path DIR_OR_HUB_ID \
    --train_dir DIR --sam sam --sam_rho 0.05 --do_train --do_eval --output_dir out

Heavy imports wait until they are needed, so that `--help` and errors come quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from torch import Tensor

    from hf_sam import SAMTrainingArguments
    from vision_scripts.arguments import DataTrainingArguments, ModelArguments
    from vision_scripts.images import ImageData
    from vision_scripts.models import Preparation
    from vision_scripts.part import Part

from shared_scripts import running

SCRIPT = "vision_scripts/run_image_classification.py"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what the arguments say and return all metrics.

    Args:
        argv: flags, after an optional file of arguments; default: the command line's.

    Raises:
        InputError: something that was given cannot be used; raised before the first update.
    """
    from vision_scripts.arguments import parse_arguments

    words = sys.argv[1:] if argv is None else argv
    model_args, data_args, args = parse_arguments(words)
    resume_from = running.checkpoint(args)
    running.set_up_logging(args, "vision_scripts")
    run = prepare(model_args, data_args, args, resume_from, words)
    metrics: dict[str, Any] = {}
    if args.do_train:
        metrics |= running.train(run)
    if args.do_eval:
        metrics |= running.evaluate(run)
    card: dict[str, Any] = {
        "tasks": "image-classification",
        "tags": ["image-classification", "vision"],
    }
    if data_args.dataset_name is not None:
        card["dataset"] = data_args.dataset_name
    running.describe(run, model_args.model_name_or_path, **card)
    return metrics


def prepare(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: SAMTrainingArguments,
    resume_from: str | None = None,
    argv: Sequence[str] = (),
) -> running.Run:
    """Check everything, the cheapest first, and build the trainer."""
    from transformers import set_seed

    from shared_scripts.results import origin
    from vision_scripts import fit, models
    from vision_scripts.data import STAGES, load_parts
    from vision_scripts.labels import class_names, encode_labels

    stages = running.wanted_stages(args, STAGES)
    set_seed(args.seed)
    config = models.load_config(model_args)
    wanted = models.preparation(model_args, config, data_args.image_size)
    if wanted.size is not None:
        fit.check_patches(config, wanted.size)
    with args.main_process_first(desc="reading the data"):
        parts = load_parts(
            data_args, stages, model_args.cache_dir, model_args.token, running.data_seed(args)
        )
    names = class_names(parts, models.known_classes(model_args, config))
    labels = {stage: encode_labels(part, names) for stage, part in parts.items()}
    model = _load_model(parts, names, wanted, config, model_args, args, resume_from)
    sets = _decode(parts, labels, wanted, config, model_args, data_args, args)
    trainer, timer = _build_trainer(model, args, sets, wanted)
    return running.Run(
        trainer,
        validation={stage: data for stage, data in sets.items() if stage == "validation"},
        resume_from=resume_from,
        timer=timer,
        origin=origin(SCRIPT, (model_args, data_args, args), argv),
    )


def _load_model(
    parts: dict[str, Part],
    names: tuple[str, ...],
    wanted: Preparation,
    config: Any,
    model_args: ModelArguments,
    args: SAMTrainingArguments,
    resume_from: str | None,
) -> Any:
    """Load the model and try it, before all images are read."""
    from vision_scripts import fit, models
    from vision_scripts.decode import check_memory, first_side

    batch = fit.smallest_batch(args, len(parts["train"].labels)) if "train" in parts else None
    size = wanted.size or first_side(next(iter(parts.values())).images[0])
    count = sum(len(part.labels) for part in parts.values())
    check_memory((count, size, size, getattr(config, "num_channels", 3)))
    model = models.load_model(model_args, config, names, size, training=batch is not None)
    fit.try_model(model, size, batch)
    if resume_from is not None:
        fit.check_resumed(model, resume_from, names, size)
    return model


def _decode(
    parts: dict[str, Part],
    labels: dict[str, Tensor],
    wanted: Preparation,
    config: Any,
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    args: SAMTrainingArguments,
) -> dict[str, ImageData]:
    """Read all images, the training images first; fill in what is wanted but not yet known."""
    from vision_scripts.decode import decode_all, mean_and_std
    from vision_scripts.images import Augmentation, ImageData

    augmentation = Augmentation(data_args.random_crop, data_args.random_flip, data_args.cutout)
    sets = {}
    for stage, part in parts.items():
        images = decode_all(part.images, wanted.size, getattr(config, "num_channels", 3))
        wanted.size = images.shape[-1]
        if stage == "train":
            augmentation.check(wanted.size)
        if wanted.mean is None or wanted.std is None:
            wanted.mean, wanted.std = mean_and_std(images)
        sets[stage] = ImageData(
            images,
            labels[stage],
            wanted.mean,
            wanted.std,
            augmentation if stage == "train" else None,
            running.data_seed(args),
            model_args.channels_last,
        ).to(args.device)
    return sets


def _build_trainer(
    model: Any, args: SAMTrainingArguments, sets: dict[str, ImageData], wanted: Preparation
) -> tuple[Any, Any]:
    from hf_sam import SAMTrainer
    from shared_scripts.results import UpdateTimer
    from vision_scripts.images import EpochStarts, collate

    timer = UpdateTimer()
    train = sets.get("train")
    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=sets.get("validation"),
        processing_class=wanted.processor(),
        data_collator=collate,
        compute_metrics=lambda p: {"accuracy": float((p.predictions == p.label_ids).mean())},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[timer, *([EpochStarts(train)] if train is not None else [])],
    )
    return trainer, timer


if __name__ == "__main__":
    running.command_line(main, "run_image_classification.py")
