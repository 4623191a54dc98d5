# SPDX-License-Identifier: Apache-2.0
"""Files of images to one tensor of bytes, whatever their size, mode and depth."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from shared_scripts.arguments import InputError
from vision_scripts.part import Source, reading

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

MODES = {1: "L", 3: "RGB"}


class Decoded(NamedTuple):
    """One image as it is used.

    Attributes:
        pixels: `(size, size, channels)` of bytes.
        resized: they are not the image's own.
        moves: it has several frames, of which this is the first.
    """

    pixels: np.ndarray
    resized: bool
    moves: bool


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
    own, size = size is None, size or first_side(sources[0])
    shape = (len(sources), size, size, channels)
    check_memory(shape)
    images, resized, moving = np.empty(shape, dtype=np.uint8), 0, []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool, _quiet():
        decode = partial(_decode, size=size, channels=channels)
        for row, found in enumerate(pool.map(decode, sources)):
            images[row] = found.pixels
            resized += found.resized
            moving += [sources[row].name] if found.moves else []
    if own and resized:
        logger.warning(
            "%d of %d images are not of %d x %d pixels, as the first one decides, and are resized: "
            "--image_size says another side",
            *(resized, len(sources), size, size),
        )
    if moving:
        logger.warning(
            "%d images have several frames, such as %s: the first one is used",
            *(len(moving), moving[0]),
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings to itself: they say what is odd in a file, but not in which."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def first_side(source: Source) -> int:
    """Return the shorter side of an image in pixels."""
    with reading(source.name, "an image"), _quiet(), _open(source) as image:
        if min(image.size) < 1:
            raise ValueError("it has no pixels")
        return min(image.size)


def check_memory(shape: tuple[int, int, int, int]) -> None:
    """Refuse images that do not fit into memory.

    Args:
        shape: their number, height, width and channels.

    Raises:
        InputError: they do not fit; says what they need and what is free.
    """
    needed, available = 2 * int(np.prod(shape)), psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{shape[0]} images of {shape[1]} x {shape[2]} pixels need {needed / 2**30:.1f} GB of "
            f"memory while they are decoded, and {available / 2**30:.1f} GB are free: lower "
            "--image_size or --max_train_samples"
        )


def _decode(source: Source, size: int, channels: int) -> Decoded:
    with reading(source.name, "an image"), _open(source) as image:
        image.load()
        own = _convert(_upright(image), MODES[channels])
        pixels = np.asarray(_fit(own, size)).reshape(size, size, channels)
        return Decoded(pixels, own.size != (size, size), _moves(image))


def _open(source: Source) -> Image:
    from PIL import Image, UnidentifiedImageError

    content = source.read()
    if not content:
        raise ValueError("it holds nothing")
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # whose text is an address in memory
        raise ValueError("its format is unknown") from None


def _upright(image: Image) -> Image:
    """Return a photo as its camera says that it lies, as far as that can be read.

    Pillow's `exif_transpose` would write all other entries anew, and fails where one is broken.
    """
    from PIL import ExifTags, Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # broken entries raise what they like, and the pixels are none of theirs
        return image
    return image if turn is None else image.transpose(turn)


def _moves(image: Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is broken; the first one has been read
        return False


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
