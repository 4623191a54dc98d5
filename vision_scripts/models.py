# SPDX-License-Identifier: Apache-2.0
"""The model of a run: its configuration, the images that it wants, its classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.utils import is_timm_available

from hf_sam.parts.base import nearest
from shared_scripts.arguments import InputError
from vision_scripts import networks  # noqa: F401 (makes its model types known)
from vision_scripts.arguments import ModelArguments

TIMM = "timm_wrapper"


def load_config(args: ModelArguments) -> PretrainedConfig:
    """Load the configuration with its overrides.

    Raises:
        InputError: it does not exist, an override is no field of it or has no valid value, or its
            package is missing.
    """
    name, overrides = str(args.config_name or args.model_name_or_path), args.config_overrides
    by_type = name in CONFIG_MAPPING and not Path(name).is_dir()
    if by_type and args.config_name is None:
        raise InputError(
            f"--model_name_or_path {name} is a type of models, not a checkpoint: give "
            f"--config_name {name} to train one from scratch"
        )

    def build(**fields: Any) -> PretrainedConfig:
        if by_type:
            return AutoConfig.for_model(name, **fields)
        return AutoConfig.from_pretrained(name, **args.download_options, **fields)

    try:
        plain = build()
        _check_overrides(plain, overrides)
        config = build(**overrides) if overrides else plain
    except ImportError as error:
        raise InputError(f"{name}: {_needs_timm(error)}") from error
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        if isinstance(error, InputError):
            raise
        flag = "--model_name_or_path" if args.config_name is None else "--config_name"
        known = nearest(name, CONFIG_MAPPING) if args.config_name is not None else ""
        reason = " ".join(str(error).split())
        raise InputError(
            f"{flag} {name}: no configuration can be made of it{known} ({reason})"
        ) from error
    if config.model_type == TIMM and not is_timm_available():
        raise InputError(f"{name}: {_needs_timm()}")
    return config


def _needs_timm(error: object = "") -> str:
    return f"models of timm need the packages timm and torchvision: pip install timm {error}"


def _check_overrides(config: PretrainedConfig, overrides: Any) -> None:
    known = config.to_dict()
    for key in overrides:
        if key not in known:
            fields = sorted(key for key, value in known.items() if not isinstance(value, dict))
            raise InputError(
                f"--config_overrides {key}: {type(config).__name__} has no such field"
                f"{nearest(key, fields)}. It has: {', '.join(fields)}"
            )


@dataclass
class Preparation:
    """What a model wants its images to be; None is found in the training images.

    Attributes:
        size: side in pixels.
        mean: per channel, of values from 0 to 1.
        std: the same.
    """

    size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def processor(self) -> BitImageProcessorPil:
        """Return the image processor of transformers that does the same, for use after training."""
        assert self.size is not None and self.mean is not None
        return BitImageProcessorPil(
            size={"shortest_edge": self.size},
            crop_size={"height": self.size, "width": self.size},
            image_mean=self.mean,
            image_std=self.std,
            do_convert_rgb=len(self.mean) == 3,
        )


def preparation(args: ModelArguments, config: PretrainedConfig, size: int | None) -> Preparation:
    """Return how the images are prepared, as far as the arguments and the model say it.

    Args:
        args: may name an image processor.
        config: the model's.
        size: asked for on the command line, or None.

    Raises:
        InputError: the image processor that is named does not exist.
    """
    found = _timm_dict(config) or _processor_dict(args)
    from_scratch = args.model_name_or_path is None
    if size is None:
        own = {} if from_scratch and "image_size" not in args.config_overrides else vars(config)
        size = _side(found.get("crop_size")) or _side(found.get("size"))
        size = size or _side(own.get("image_size"))
    mean, std = found.get("image_mean"), found.get("image_std")
    channels = getattr(config, "num_channels", 3)
    if not found.get("do_normalize", bool(mean)):
        return Preparation(size)
    return Preparation(size, list(mean)[:channels], list(std)[:channels])


def _timm_dict(config: PretrainedConfig) -> dict[str, Any]:
    """Return what a configuration of timm's says of the images, in transformers' words."""
    own = getattr(config, "pretrained_cfg", None) or {}
    if not {"input_size", "mean", "std"} <= own.keys():
        return {}
    return {"size": own["input_size"][-1], "image_mean": own["mean"], "image_std": own["std"]}


def _processor_dict(args: ModelArguments) -> dict[str, Any]:
    name = args.image_processor_name or args.model_name_or_path
    if name is None:
        return {}
    options = {"cache_dir": args.cache_dir, "revision": args.model_revision, "token": args.token}
    try:
        return dict(BitImageProcessorPil.get_image_processor_dict(name, **options)[0])
    except (OSError, ValueError) as error:
        if args.image_processor_name is None:
            return {}
        raise InputError(f"--image_processor_name {name}: cannot be loaded: {error}") from error


def _side(size: Any) -> int | None:
    """Return the side that an image processor or a configuration means."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, list | tuple):
        size = size[0]
    return size if isinstance(size, int) else None


def known_classes(args: ModelArguments, config: PretrainedConfig) -> tuple[str, ...]:
    """Return the classes that a checkpoint was trained on, in the order of its head."""
    if args.model_name_or_path is None:
        return ()
    ids: dict[Any, str] = dict(config.id2label or {})
    names = tuple(str(ids[index]) for index in sorted(ids))
    return () if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def load_model(
    args: ModelArguments, config: PretrainedConfig, names: tuple[str, ...], size: int
) -> PreTrainedModel:
    """Build or load the model with a head for these classes, and try it on an image.

    Raises:
        InputError: images of this size do not fit, or the checkpoint's head has other classes.
    """
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "single_label_classification"
    from_scratch = args.model_name_or_path is None
    if from_scratch and "image_size" in config.to_dict():
        config.image_size = size
    check_patches(config, size)
    try:
        model = _build(args, config)
    except (RuntimeError, ValueError, TypeError) as error:
        other = "ignore_mismatched_sizes" in str(error)
        reason = (
            "weights of it have another shape, as a head for other classes; "
            "--ignore_mismatched_sizes begins with new ones"
        )
        raise InputError(
            f"{args.model_name_or_path or args.config_name}: no model with {len(names)} classes "
            f"can be made of it: {reason if other else error}"
        ) from error
    _try(model, size)
    # Checkpoints get the weights' present names: Trainer resumes by these alone, and would silently
    # go on with new weights after the old names of ViT (transformers issue 48805).
    model._weight_conversions = []
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def _build(args: ModelArguments, config: PretrainedConfig) -> Any:
    if args.model_name_or_path is None:
        config.architectures = config.architectures or []  # None breaks types of several classes
        return AutoModelForImageClassification.from_config(config)
    return AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=args.ignore_mismatched_sizes,
        **args.download_options,
    )


def check_patches(config: PretrainedConfig, size: int) -> None:
    """Refuse images whose border would fall off because their side is no multiple of a patch's.

    Raises:
        InputError: it is none; names the sides that are.
    """
    patch = _side(getattr(config, "patch_size", None))
    if patch is not None and size % patch:
        sides = ([size // patch * patch] if size > patch else []) + [-(-size // patch) * patch]
        raise InputError(
            f"images of {size} x {size} pixels do not fit the model's patches of {patch} x "
            f"{patch}: give --image_size {' or '.join(map(str, sides))}, or from scratch another "
            "patch_size in --config_overrides"
        )


def _try(model: PreTrainedModel, size: int) -> None:
    channels = getattr(model.config, "num_channels", 3)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, channels, size, size)).logits
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{type(model).__name__} cannot read images of {size} x {size} pixels and {channels} "
            f"channels: {error}; give another --image_size"
        ) from error
    assert logits.shape == (1, model.config.num_labels)
    model.train()
