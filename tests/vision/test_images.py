# SPDX-License-Identifier: Apache-2.0
"""Batches and augmentation: right pixels, and a function of (seed, epoch, row) only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import SAMTrainer, SAMTrainingArguments
from shared_scripts.arguments import InputError
from tests.toys import assert_equal, logged, weights
from vision_scripts.images import Augmentation, Draws, EpochStarts, ImageData, collate
from vision_scripts.networks import CifarResNetConfig, CifarResNetForImageClassification

ALL = Augmentation(crop=2, flip=True, cutout=3)


def data(how: Augmentation | None = None, n: int = 40, side: int = 6, **more: Any) -> ImageData:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(1, 256, (n, 3, side, side), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 2, (n,), generator=draw)
    return ImageData(images, labels, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], how, **more)


def pixels(images: ImageData, rows: list[int]) -> Tensor:
    """Return a batch with the normalisation undone, as bytes."""
    values = collate([images[row] for row in rows])["pixel_values"]
    std, mean = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.2, 0.3, 0.4], [0.5, 0.4, 0.3]))
    return ((values * std + mean) * 255).round().to(torch.uint8)


def test_a_batch_without_augmentation_is_the_images() -> None:
    images = data()
    batch = collate([images[row] for row in (5, 0)])
    expected = (images.images[5].double() / 255 - 0.5) / 0.2
    torch.testing.assert_close(batch["pixel_values"][0, 0].double(), expected[0], atol=1e-6, rtol=0)
    assert batch["labels"].tolist() == images.labels[[5, 0]].tolist()
    assert torch.equal(pixels(images, [3]), images.images[[3]])


def test_augmentation_depends_on_seed_epoch_and_row_alone() -> None:
    images = data(ALL)
    whole = images.batch(torch.arange(40))["pixel_values"]
    torch.manual_seed(5)
    mixed = collate([images[row] for row in (31, 2, 7)])["pixel_values"]
    assert torch.equal(mixed, whole[[31, 2, 7]])
    images.epoch = 1
    assert not torch.equal(images.batch(torch.arange(40))["pixel_values"], whole)
    other = data(ALL, seed=1).batch(torch.arange(40))["pixel_values"]
    assert not torch.equal(other, whole)


def test_crops_and_flips_are_those_of_the_padded_image() -> None:
    images = data(Augmentation(crop=1, flip=True), n=400)
    padded = torch.nn.functional.pad(images.images, [1] * 4)
    seen = set()
    for row, image in enumerate(pixels(images, list(range(400)))):
        for flip in (False, True):
            for down in range(3):
                for right in range(3):
                    part = padded[row, :, down : down + 6, right : right + 6]
                    if torch.equal(image, part.flip(-1) if flip else part):
                        seen.add((flip, down, right))
                        break
        assert seen
    assert len(seen) == 18


def test_cutout_blanks_a_square_around_any_pixel() -> None:
    blank = collate([data(Augmentation(cutout=3), n=400)[row] for row in range(400)])
    missing = blank["pixel_values"].eq(0).all(1)
    sizes = {(int(m.any(1).sum()), int(m.any(0).sum())) for m in missing}
    assert sizes == {(a, b) for a in (2, 3) for b in (2, 3)}  # cut at the border
    assert missing.flatten(1).sum(1).max() == 9
    assert missing.any(0).all()


@pytest.mark.parametrize(("how", "name"), [({"crop": 6}, "random_crop"), ({"cutout": 7}, "cutout")])
def test_augmentation_leaves_something_of_an_image(how: dict[str, int], name: str) -> None:
    ALL.check(6)
    with pytest.raises(InputError, match=f"--{name} .: leaves nothing of images of 6 x 6.*most 5"):
        Augmentation(**how).check(6)


def test_draws_are_uniform_and_independent() -> None:
    draws = Draws(3, 1, torch.arange(30_000))
    first, second = draws.below(3), draws.below(3)
    shares = torch.bincount(3 * first + second, minlength=9) / 30_000
    assert (shares - 1 / 9).abs().max() < 0.008
    assert torch.equal(first, Draws(3, 1, torch.arange(30_000)).below(3))


@pytest.mark.gpu
def test_the_same_images_on_a_gpu() -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    rows, here = torch.arange(40), data(ALL)
    there = data(ALL).to(device).batch(rows)["pixel_values"]
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), here.batch(rows)["pixel_values"])


def test_channels_last_is_the_format_of_the_batch() -> None:
    values = data(ALL, channels_last=True).batch(torch.arange(4))["pixel_values"]
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(values, data(ALL).batch(torch.arange(4))["pixel_values"])


class Watching(ImageData):
    """Counts how often each batch is made."""

    made = 0

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        self.made += 1
        return super().batch(rows)


def train(folder: Path, resume: Path | None = None, **arguments: Any) -> SAMTrainer:
    """Train a tiny network for three epochs of five batches on augmented images."""
    torch.manual_seed(0)
    config = CifarResNetConfig(depths=[1, 1], hidden_sizes=[4, 8], num_labels=2)
    images = data(ALL)
    images.__class__ = Watching
    values: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 0.05,
        "save_strategy": "steps",
        "save_steps": 7,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "optim": "sgd",
    }
    trainer = SAMTrainer(
        model=CifarResNetForImageClassification(config),
        args=SAMTrainingArguments(str(folder), **(values | arguments)),
        train_dataset=images,
        data_collator=collate,
        callbacks=[EpochStarts(images)],
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


@pytest.mark.parametrize("sam", ["sam", "esam"])
def test_resuming_in_an_epoch_equals_not_stopping(sam: str, tmp_path: Path) -> None:
    """Law 5 with augmentation, whatever torch's generator holds; passes share a batch."""
    whole = train(tmp_path / "whole", sam=sam)
    assert whole.train_dataset.made == 15
    again = train(tmp_path / "again", tmp_path / "whole" / "checkpoint-7", sam=sam)
    assert_equal(weights(whole), weights(again))
    assert_equal(list(whole.model.buffers()), list(again.model.buffers()))
    assert logged(whole)[7:] == logged(again)[-8:]
    fixed = train(tmp_path / "fixed", sam=sam, num_train_epochs=1, max_steps=15, data_seed=1)
    assert not torch.equal(weights(whole)[0], weights(fixed)[0])
