# SPDX-License-Identifier: Apache-2.0
"""Whether images, model and checkpoint fit: asked before the first update."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shared_scripts.arguments import InputError
from vision_scripts.folders import listed
from vision_scripts.part import reading, said

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_sam import SAMTrainingArguments

WEIGHTS = "model.safetensors"


def side_of(size: Any) -> int | None:
    """Return the side in pixels that an image processor or a configuration means."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if isinstance(size, list | tuple):
        size = size[0] if size else None
    return size if isinstance(size, int) else None


def check_patches(config: PretrainedConfig, size: int) -> None:
    """Refuse images whose border would fall off because their side is no multiple of a patch's.

    Raises:
        InputError: it is none; names the sides that are.
    """
    patch = side_of(getattr(config, "patch_size", None))
    if patch is not None and (patch < 1 or size % patch):
        sides = [n * patch for n in (size // max(patch, 1), -(-size // max(patch, 1))) if n > 0]
        raise InputError(
            f"images of {size} x {size} pixels do not fit the model's patches of {patch} x "
            f"{patch}: give --image_size {' or '.join(map(str, sides))}, or from scratch another "
            "patch_size in --config_overrides"
        )


def smallest_batch(args: SAMTrainingArguments, images: int) -> int:
    """Return how many images the smallest batch of the training holds.

    Raises:
        InputError: there is no batch at all.
    """
    batch = args.train_batch_size
    if args.dataloader_drop_last:
        if images < batch * args.world_size:
            raise InputError(
                f"--dataloader_drop_last: the {images} training images make no whole batch of "
                f"{batch * args.world_size}: lower --per_device_train_batch_size"
            )
        return batch
    return images % batch or batch if args.world_size == 1 else batch  # several get whole batches


def try_model(model: PreTrainedModel, size: int, batch: int | None) -> None:
    """Let the model read images of this size, and leave it as it was.

    Args:
        model: with the head of the run.
        size: side of the images in pixels.
        batch: of how many images the smallest batch of the training is; None without training.

    Raises:
        InputError: it cannot read them, or has another head.
    """
    channels, classes = getattr(model.config, "num_channels", 3), model.config.num_labels
    count = 1 if batch is None else min(batch, 2)  # more would show nothing else
    images, kind = torch.zeros(count, channels, size, size), type(model).__name__
    try:
        with _as_it_was(model), torch.no_grad():
            logits = model.train(batch is not None)(pixel_values=images).logits
    except Exception as error:  # whatever a model's layers raise, the sizes are the user's
        raise InputError(
            f"{kind} cannot read images of {size} x {size} pixels and {channels} channels in a "
            f"batch of {count}: {said(error)}; {_remedy(model.config, size, batch)}"
        ) from error
    if logits.shape != (count, classes):
        raise InputError(
            f"{kind} gives outputs of shape {tuple(logits.shape)} for {count} images of {classes} "
            "classes: give a model for the classification of images"
        )


def _remedy(config: PretrainedConfig, size: int, batch: int | None) -> str:
    own = side_of(getattr(config, "image_size", None))
    sides = "another --image_size" if own in (None, size) else f"--image_size {own}"
    if batch != 1:
        return f"give {sides}"
    return (
        f"give {sides}, or, as the last batch has one image only, another "
        "--per_device_train_batch_size or --dataloader_drop_last"
    )


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Bring back the mode, the buffers (batch statistics) and the random numbers."""
    training = model.training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        yield
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.train(training)


def check_resumed(model: PreTrainedModel, folder: str, names: tuple[str, ...], size: int) -> None:
    """Refuse to go on from a checkpoint of other classes, images or weights.

    Trainer would find other weights only when it starts, and never that classes have moved.

    Args:
        model: of this run.
        folder: `--resume_from_checkpoint`.
        names: the classes of this run, in the order of the head.
        size: side of the images of this run, in pixels.

    Raises:
        InputError: it does not fit.
    """
    where = f"--resume_from_checkpoint {folder}"
    remedy = "give the data and the model of its run, or begin from it with --model_name_or_path"
    ids = _read(Path(folder) / "config.json").get("id2label") or {}
    theirs = tuple(ids[index] for index in sorted(ids, key=int))
    if theirs and theirs != names:
        raise InputError(
            f"{where}: was trained on the classes {listed(theirs)}, in this order, and this run "
            f"has {listed(names)}: {remedy}"
        )
    side = side_of(_read(Path(folder) / "preprocessor_config.json").get("crop_size"))
    if side not in (None, size):
        raise InputError(
            f"{where}: was trained on images of {side} x {side} pixels, and this run's have "
            f"{size} x {size}: give --image_size {side}"
        )
    own = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for name, shape in _shapes(Path(folder) / WEIGHTS).items():
        if own.get(name) != shape:
            found = f"shape {own[name]}" if name in own else "no such weights"
            raise InputError(f"{where}: {name} has shape {shape}, this run's {found}: {remedy}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with reading(str(path), "JSON"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint in one file; one in several is left to Trainer."""
    from safetensors import safe_open

    if not path.is_file():
        return {}
    with reading(str(path), "a checkpoint"), safe_open(path, "pt") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
