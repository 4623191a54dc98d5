# SPDX-License-Identifier: Apache-2.0
"""The arguments of run_image_classification.py, its recipes, and one YAML or JSON file."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_sam import SAMTrainingArguments
from hf_sam.texts import parse_options
from shared_scripts.arguments import HubArguments, InputError, check_positive, parse
from shared_scripts.hold_out import check_share

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class ModelArguments(HubArguments):
    """Which model to start from: a checkpoint, or a configuration with new weights."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder with a pretrained model, or its id on the Hub."}
    )
    config_name: str | None = field(
        default=None,
        metadata={
            "help": "Configuration, if it is not the model's own. Without a model it is trained "
            "from scratch: a folder, an id on the Hub, or a model type with its defaults: "
            "cifar_resnet, wide_resnet, vit, deit, resnet, convnext, swin, ..."
        },
    )
    config_overrides: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Fields of the configuration: JSON, or 'hidden_size=192,patch_size=4'."},
    )
    image_processor_name: str | None = field(
        default=None,
        metadata={
            "help": "Where size, mean and standard deviation of the images come from, if not from "
            "the model; without either, from the training images."
        },
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Keep channels next to each other in memory: faster convolutions."},
    )

    def __post_init__(self) -> None:
        """Check that there is one thing to start from."""
        if self.model_name_or_path is None and self.config_name is None:
            raise InputError(
                "no model: give --model_name_or_path (a checkpoint), or --config_name to train "
                "from scratch (cifar_resnet, wide_resnet, vit, ...)"
            )
        try:
            self.config_overrides = parse_options(self.config_overrides)
        except ValueError as error:
            raise InputError(str(error).replace("sam_options", "--config_overrides")) from None


@dataclass
class DataTrainingArguments:
    """Which images to train and evaluate on, and how they are prepared."""

    recipe: str | None = field(
        default=None,
        metadata={"help": "Arguments of a published result; everything else overrides them."},
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of that dataset."}
    )
    validation_split_name: str = field(
        default="validation", metadata={"help": "Split of that dataset to evaluate on."}
    )
    train_dir: str | None = field(
        default=None, metadata={"help": "Folder with a folder of images per class."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "The same for the validation images."}
    )
    train_file: list[str] | None = field(
        default=None, metadata={"help": "Parquet files with images and labels."}
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "The same for the validation images."}
    )
    train_val_split: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate on this share of the training images and do not read the validation "
            "images, as for choosing a radius; without validation images the default is 0.15."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many images, drawn once for all seeds."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "The same for the validation images."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images; default: image or img."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels; default: label or labels."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side in pixels; other images are resized and cut. Default: the model's, or "
            "from scratch the first image's."
        },
    )
    random_crop: int = field(
        default=0, metadata={"help": "Pad training images by so many pixels and crop at random."}
    )
    random_flip: bool = field(
        default=False, metadata={"help": "Mirror every other training image, left to right."}
    )
    cutout: int = field(
        default=0, metadata={"help": "Side in pixels of a square that is blanked out at random."}
    )

    def __post_init__(self) -> None:
        """Check the source, the shares and the sizes."""
        for stage in ("train", "validation"):
            if getattr(self, f"{stage}_dir") is not None and getattr(self, f"{stage}_file"):
                raise InputError(f"--{stage}_dir and --{stage}_file: give one")
        if not any((self.dataset_name, *self._local())):
            raise InputError(
                "no data: give --train_dir and --validation_dir (a folder per class), "
                "--train_file and --validation_file (.parquet), or --dataset_name"
            )
        check_share(self.train_val_split)
        check_positive(self, "max_train_samples", "max_eval_samples", "image_size")
        for name in ("random_crop", "cutout"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 0")

    def _local(self) -> tuple[str | list[str] | None, ...]:
        return self.train_dir, self.validation_dir, self.train_file, self.validation_file


Arguments = tuple[ModelArguments, DataTrainingArguments, SAMTrainingArguments]


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse `[FILE] [--recipe NAME] [--flag value ...]`; flags override the file, it the recipe.

    Raises:
        InputError: an unknown name, a value of the wrong kind, or a combination that is refused.
    """
    model_args, data_args, args = parse(
        (ModelArguments, DataTrainingArguments, SAMTrainingArguments),
        argv,
        prog="run_image_classification.py",
        description="Train an image classifier, with or without SAM.",
        recipes=RECIPES,
    )
    if args.dataloader_num_workers:
        logger.warning(
            "--dataloader_num_workers %d: images are decoded once and batches cut from memory, "
            "which workers would only slow down; 0 is used",
            args.dataloader_num_workers,
        )
        args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None
        args.dataloader_persistent_workers = False
    args.remove_unused_columns = False  # batches are made of row numbers
    args.dataloader_pin_memory = False  # they are made where the model is
    return model_args, data_args, args
