# SPDX-License-Identifier: Apache-2.0
"""Images in memory: decoded once, cut into batches and augmented as tensors, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import TrainerCallback

from shared_scripts.arguments import InputError


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images, each drawn anew in every epoch.

    Attributes:
        crop: pixels of black around an image before a random crop of its own size.
        flip: mirror every other image, left to right.
        cutout: side in pixels of a square of the mean colour around a random pixel.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def check(self, size: int) -> None:
        """Refuse what leaves nothing of images of this side in pixels.

        Raises:
            InputError: the frame of black, or the square, is as large as the image.
        """
        for name, value in (("random_crop", self.crop), ("cutout", self.cutout)):
            if value >= size:
                raise InputError(
                    f"--{name} {value}: leaves nothing of images of {size} x {size} pixels; give "
                    f"at most {size - 1}"
                )


class Row(NamedTuple):
    """An example that `collate` will cut out of its images."""

    data: ImageData
    index: int


class ImageData(Dataset[Row]):
    """Images as one tensor, and batches of them.

    What augmentation does is a function of (seed, epoch, row): whatever the batch, the number of
    processes and the updates before, so resuming goes on with the same images. All passes of an
    update see the same batch, which is made once.

    Args:
        images: `(N, C, H, W)` of bytes.
        labels: `(N,)` class of each image.
        mean: per channel, of values from 0 to 1.
        std: the same.
        augmentation: for training images.
        seed: of the augmentation.
        channels_last: memory format of the batches.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.images, self.labels = images, labels
        self.augmentation = augmentation or Augmentation()
        self.seed, self.epoch = seed, 0
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(mean, device=images.device).view(shape)
        self._std = torch.tensor(std, device=images.device).view(shape)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Row:
        """Return a reference to an example; `collate` makes batches of them."""
        return Row(self, index)

    def to(self, device: torch.device) -> ImageData:
        """Move everything to where the batches are wanted; return itself."""
        for name in ("images", "labels", "_mean", "_std"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Return `pixel_values` (B, C, H, W) and `labels` (B,) of these rows (B,)."""
        rows = rows.to(self.images.device)
        how, images = self.augmentation, self.images[rows]
        draws = Draws(self.seed, self.epoch, rows)
        if how.crop or how.flip:
            images = _crop_and_flip(images, draws, how)
        values = (images.float() / 255 - self._mean) / self._std
        if how.cutout:
            values = values.masked_fill(_cutout(values, draws, how.cutout), 0.0)
        values = values.contiguous(memory_format=self._format)
        return {"pixel_values": values, "labels": self.labels[rows]}


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Make a batch of examples of one `ImageData`."""
    return rows[0].data.batch(torch.tensor([row.index for row in rows]))


class EpochStarts(TrainerCallback):
    """Tells the training images which epoch it is."""

    def __init__(self, data: ImageData) -> None:
        self._data = data

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the number of the epoch, also in the middle of one that is resumed."""
        self._data.epoch = int(state.epoch)


class Draws:
    """Random numbers that are a function of (seed, epoch, row) and of the order of the calls.

    A hash (splitmix64) instead of a generator: its numbers are the same in any batch, on any
    device and in any process.

    Args:
        seed: of the run.
        epoch: from 0.
        rows: `(B,)` of whole numbers.
    """

    def __init__(self, seed: int, epoch: int, rows: Tensor) -> None:
        self._state = rows.long()
        for value in (seed, epoch):
            self._state = _mix(self._state) + value
        self._calls = 0

    def below(self, limit: int) -> Tensor:
        """Return a whole number in [0, limit) for each row, `(B,)`."""
        self._calls += 1
        return (_mix(_mix(self._state) + self._calls) >> 1 & 2**62 - 1) % limit


def _mix(x: Tensor) -> Tensor:
    """Return splitmix64's next output of these states, int64."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ (x >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return x ^ (x >> 31 & 2**33 - 1)


def _crop_and_flip(images: Tensor, draws: Draws, how: Augmentation) -> Tensor:
    """Return images `(B, C, H, W)` that are moved within a black frame, and mirrored."""
    size, (height, width) = len(images), images.shape[-2:]
    down = torch.arange(height, device=images.device).expand(size, height)
    right = torch.arange(width, device=images.device).expand(size, width)
    if how.flip:
        right = torch.where(draws.below(2).bool()[:, None], width - 1 - right, right)
    if how.crop:
        down = down + draws.below(2 * how.crop + 1)[:, None]
        right = right + draws.below(2 * how.crop + 1)[:, None]
        images = functional.pad(images, [how.crop] * 4)
    batch = torch.arange(size, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return images[batch, channel, down[:, None, :, None], right[:, None, None, :]]


def _cutout(images: Tensor, draws: Draws, side: int) -> Tensor:
    """Return where a square around a random pixel lies, `(B, 1, H, W)`; the border cuts it."""

    def inside(length: int) -> Tensor:
        start = draws.below(length) - side // 2
        place = torch.arange(length, device=images.device)
        return (place >= start[:, None]) & (place < start[:, None] + side)

    height, width = images.shape[-2:]
    return (inside(height)[:, None, :, None]) & (inside(width)[:, None, None, :])
