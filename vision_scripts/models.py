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
from vision_scripts.fit import check_patches, side_of
from vision_scripts.part import said

TIMM = "timm_wrapper"
PROCESSOR = "preprocessor_config.json"


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
        size = side_of(found.get("crop_size")) or side_of(found.get("size"))
        size = size or side_of(own.get("image_size"))
    if not found.get("do_normalize", bool(found.get("image_mean"))):
        return Preparation(size)
    channels = getattr(config, "num_channels", 3)
    name = args.image_processor_name or args.model_name_or_path
    mean, std = (_per_channel(found, key, channels, name) for key in ("image_mean", "image_std"))
    return Preparation(size, mean, std)


def _per_channel(found: dict[str, Any], key: str, channels: int, name: object) -> list[float]:
    """Return an image processor's numbers, one per channel; one for all may be alone."""
    value = found.get(key)
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    numbers = numbers * channels if len(numbers) == 1 else numbers[:channels]
    least = 0.0 if key == "image_mean" else 1e-6
    good = [isinstance(number, int | float) and number >= least for number in numbers]
    if len(numbers) != channels or not all(good):
        raise InputError(
            f"{name}: its image processor has {key}={value!r:.60}; the model needs {channels} "
            "numbers above 0. Give another one by --image_processor_name"
        )
    return [float(number) for number in numbers]


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
    except Exception as error:  # a file of any content
        if args.image_processor_name is None and not (Path(name) / PROCESSOR).is_file():
            return {}
        flag = "--image_processor_name" if args.image_processor_name else "the image processor of"
        raise InputError(f"{flag} {name}: cannot be loaded: {said(error)}") from error


def known_classes(args: ModelArguments, config: PretrainedConfig) -> tuple[str, ...]:
    """Return the classes of a checkpoint's head in its order, LABEL_n where it has no names."""
    if args.model_name_or_path is None:
        return ()
    ids: dict[Any, str] = dict(config.id2label or {})
    return tuple(str(ids[index]) for index in sorted(ids))


def load_model(
    args: ModelArguments,
    config: PretrainedConfig,
    names: tuple[str, ...],
    size: int,
    training: bool = True,
) -> PreTrainedModel:
    """Build or load the model with a head for these classes.

    Args:
        args: where it comes from.
        config: the model's; gets the classes.
        names: of the classes in the order of the head.
        size: side of the images in pixels.
        training: weights that the checkpoint lacks are trained; without it they are refused.

    Raises:
        InputError: images of this size do not fit, or the checkpoint has other weights.
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
        model = _from_scratch(config) if from_scratch else _from_checkpoint(args, config, training)
    except InputError:
        raise
    except Exception as error:  # libraries of weights raise what they like
        raise InputError(
            f"{args.model_name_or_path or args.config_name}: no model with {len(names)} classes "
            f"can be made of it: {said(error)}"
        ) from error
    # Checkpoints get the weights' present names: Trainer resumes by these alone, and would silently
    # go on with new weights after the old names of ViT (transformers issue 48805).
    model._weight_conversions = []
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def _from_scratch(config: PretrainedConfig) -> Any:
    config.architectures = config.architectures or []  # None breaks types of several classes
    return AutoModelForImageClassification.from_config(config)


def _from_checkpoint(args: ModelArguments, config: PretrainedConfig, training: bool) -> Any:
    """Load all weights that fit, and refuse here, with their names, what does not."""
    model, found = AutoModelForImageClassification.from_pretrained(
        args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,  # what is trained; --bf16 and --fp16 compute with copies of it
        **args.download_options,
    )
    other = sorted(found["mismatched_keys"])
    if other and not args.ignore_mismatched_sizes:
        raise InputError(f"{args.model_name_or_path}: {_mismatch(other, config.num_labels)}")
    missing = sorted(found["missing_keys"])
    mostly = 2 * (len(missing) + len(other)) > len(model.state_dict())  # more than a new head
    if missing and (mostly or not training):
        raise InputError(
            f"{args.model_name_or_path}: is no checkpoint of {type(model).__name__}: it lacks "
            f"{len(missing)} weights, such as {missing[0]}, which would be random; give one that "
            "was trained to classify images"
        )
    return model


def _mismatch(weights: list[Any], classes: int) -> str:
    """Say which weights of a checkpoint have another shape than the model, and the remedy.

    Args:
        weights: (name, shape in the checkpoint, shape in the model).
        classes: of the images.
    """
    if all(tuple(ours)[:1] == (classes,) for _, _, ours in weights):
        return (
            f"no model with {classes} classes can be made of it, as its head has "
            f"{tuple(weights[0][1])[0]}: --ignore_mismatched_sizes begins with a new one"
        )
    name, theirs, ours = weights[0]
    return (
        f"{len(weights)} of its weights have another shape than the configuration says, such as "
        f"{name}: {tuple(theirs)} instead of {tuple(ours)}; leave out --config_name and "
        "--config_overrides, or begin with new ones by --ignore_mismatched_sizes"
    )
