# SPDX-License-Identifier: Apache-2.0
"""Files of images to one tensor of bytes, whatever their size, mode and depth."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from shared_scripts.arguments import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Source:
    """One encoded image.

    Attributes:
        name: file and row, as errors name it.
        read: returns the bytes of the encoded image.
    """

    name: str
    read: Callable[[], bytes]


def decode_all(sources: Sequence[Source], size: int | None, channels: int) -> Tensor:
    """Return the images as bytes, `(N, channels, size, size)`.

    An image of another size is resized by its shorter side and cut around its centre.

    Args:
        sources: at least one.
        size: side in pixels; None for that of the first image.
        channels: 1 for grey, 3 for colour.

    Raises:
        InputError: an image cannot be read (with its name), they do not fit into memory, or the
            model's channels are neither 1 nor 3.
    """
    if channels not in MODES:
        raise InputError(
            f"num_channels={channels}: images have 1 channel (grey) or 3 (colour); choose one in "
            "--config_overrides"
        )
    own = size is None
    size = size or min(_open(sources[0], channels).size)
    shape = (len(sources), size, size, channels)
    _check_memory(shape)
    images, resized = np.empty(shape, dtype=np.uint8), 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        decode = partial(_decode, size=size, channels=channels)
        for row, (image, fits) in enumerate(pool.map(decode, sources)):
            images[row] = image
            resized += not fits
    if own and resized:
        logger.warning(
            "%d of %d images are not of %d x %d pixels, as the first one decides, and are resized: "
            "--image_size says another side",
            *(resized, len(sources), size, size),
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _check_memory(shape: tuple[int, ...]) -> None:
    needed, available = 2 * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{shape[0]} images of {shape[1]} x {shape[2]} pixels need {needed / 2**30:.1f} GB of "
            f"memory while they are decoded, and {available / 2**30:.1f} GB are free: lower "
            "--image_size or --max_train_samples"
        )


def _decode(source: Source, size: int, channels: int) -> tuple[np.ndarray, bool]:
    """Return the pixels, and whether they are the image's own."""
    image = _open(source, channels)
    pixels = np.asarray(_fit(image, size)).reshape(size, size, channels)
    return pixels, image.size == (size, size)


def _open(source: Source, channels: int) -> Image:
    """Read one image in the right mode."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source.read())) as image:
            image.load()
            return _convert(ImageOps.exif_transpose(image), MODES[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is an address in memory
        raise InputError(
            f"{source.name}: cannot be read as an image: "
            f"{'its format is unknown' if unknown else error}; mend it or take it out"
        ) from error


def _convert(image: Image, mode: str) -> Image:
    """Return the image in `mode`: 16 bits scaled to 8, what is transparent over white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _from_deep(image: Image) -> Image:
    """Scale whole numbers of 16 bits to bytes."""
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 2**16 - 1:
        raise ValueError(f"mode {image.mode}: its values have no fixed range; save it with 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _fit(image: Image, size: int) -> Image:
    from PIL import Image, ImageOps

    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def mean_and_std(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of values from 0 to 1.

    Args:
        images: `(N, C, H, W)` of bytes.
    """
    counts = [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    values = torch.arange(256, dtype=torch.float64) / 255
    means = [float((n * values).sum() / n.sum()) for n in counts]
    pairs: Iterable[Any] = zip(counts, means, strict=True)
    stds = [float(((n * (values - mean).square()).sum() / n.sum()).sqrt()) for n, mean in pairs]
    return means, [max(std, 1 / 255) for std in stds]
