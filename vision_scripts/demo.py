#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""`make demo`: a small ResNet with and without SAM, where a share of the training labels is wrong.

python -m vision_scripts.demo                                    # what `make demo` runs
python -m vision_scripts.demo --methods none sam asam --sam_rho 0.5 --seeds 1

Handwritten digits of 8 x 8 pixels that come with scikit-learn, so nothing is downloaded. What is
measured: see shared_scripts/demo.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from shared_scripts import demo  # isort: skip (before torch is loaded)

import torch
from transformers import set_seed

from vision_scripts.decode import mean_and_std
from vision_scripts.images import ImageData, collate
from vision_scripts.networks import CifarResNetConfig, CifarResNetForImageClassification

CLASSES = 10


@dataclass(frozen=True)
class Setting(demo.Setting):
    """What is trained, with momentum SGD and a cosine schedule.

    Attributes:
        sizes: channels of the ResNet's stages, one block each.
    """

    sam_rho: float = 0.1
    label_noise: float = 0.3
    examples: int = 900
    validation: int = 897
    epochs: int = 16
    batch: int = 60
    learning_rate: float = 0.1
    sizes: tuple[int, ...] = (8, 16)


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's digits as bytes, `(1797, 1, 8, 8)`, and their classes, `(1797,)`."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images / 16 * 255).round().to(torch.uint8)
    return images[:, None], torch.tensor(found.target)


class Problem(demo.Problem):
    """The digits of one seed: who is in the training split, and which labels are wrong."""

    setting: Setting

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        draw = torch.Generator().manual_seed(seed)
        images, labels = read_digits()
        order = torch.randperm(len(labels), generator=draw)
        train, rest = order[: setting.examples], order[setting.examples :][: setting.validation]
        given, right = labels[train].clone(), labels[train]
        count = round(setting.label_noise * len(train))
        wrong = torch.randperm(len(train), generator=draw)[:count]
        given[wrong] += torch.randint(1, CLASSES, (count,), generator=draw)
        given %= CLASSES
        mean, std = mean_and_std(images[train])
        self.train = ImageData(images[train], given, mean, std)
        self.validation = ImageData(images[rest], labels[rest], mean, std)
        self.fixed_wrong = (given != right)[: demo.FIXED].numpy()

    def fixed_batches(self, device: torch.device) -> list[dict[str, torch.Tensor]]:
        """Return the first 512 training examples, with the labels that are trained on."""
        rows = torch.arange(min(demo.FIXED, len(self.train))).split(256)
        batches = [self.train.batch(part) for part in rows]
        return [{key: value.to(device) for key, value in batch.items()} for batch in batches]

    def options(self) -> dict[str, Any]:
        """Return training arguments beside those that all demos have."""
        return {
            "per_device_eval_batch_size": 300,
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "weight_decay": 1e-3,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }

    def parts(self) -> dict[str, Any]:
        """Return what `SAMTrainer` takes beside its arguments, with a new model."""
        set_seed(self.seed)
        sizes = list(self.setting.sizes)
        config = CifarResNetConfig([1] * len(sizes), sizes, num_channels=1, num_labels=CLASSES)
        return {
            "model": CifarResNetForImageClassification(config),
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": collate,
        }


def _heading(setting: Setting) -> str:
    return (
        f"Handwritten digits: {setting.examples} training images, {setting.label_noise:.0%} of "
        f"their labels wrong; a ResNet of {len(setting.sizes)} blocks"
    )


DEMO = demo.Demo(
    module="vision_scripts.demo",
    about=str(__doc__),
    setting=Setting(),
    problem=Problem,
    heading=_heading,
    title="A small ResNet reads digits",
    folder="demo_output/images",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    demo.run(DEMO, argv)


if __name__ == "__main__":
    main()
