# SPDX-License-Identifier: Apache-2.0
"""Small images in every form that the script reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
from PIL import Image as Pillow

NAMES = ["cat", "dog", "fish"]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    disable_progress_bars()


def picture(number: int, size: int = 8) -> Pillow.Image:
    """Return a colour image whose brightness tells its class, number modulo 3."""
    draw = np.random.default_rng(number)
    values = draw.integers(0, 80, (size, size, 3)) + 80 * (number % 3)
    return Pillow.fromarray(values.astype(np.uint8))


def png(image: Pillow.Image) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 24, start: int = 0, **columns: list) -> Dataset:
    """Return rows as the datasets library keeps images: bytes, and classes with names."""
    rows = range(start, start + count)
    found = {
        "image": [{"bytes": png(picture(n)), "path": None} for n in rows],
        "label": [n % 3 for n in rows],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict(found | columns, None if columns else features)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train-0.parquet (16 rows), train-1.parquet (8 rows) and test.parquet (9 rows)."""
    folder = tmp_path_factory.mktemp("parquet")
    table(16).to_parquet(folder / "train-0.parquet")
    table(8, 16).to_parquet(folder / "train-1.parquet")
    table(9, 60).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    """Folder with a folder of four images per class."""
    for number in range(12):
        path = tmp_path / "images" / NAMES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "images"


TINY = '{"depths": [1, 1], "hidden_sizes": [4, 8]}'


@pytest.fixture
def flags(files: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Function from arguments to a command line for a tiny ResNet, output in `tmp_path / out`."""

    def build(*words: str, **values: object) -> list[str]:
        common: dict[str, object] = {
            "config_name": "cifar_resnet",
            "config_overrides": TINY,
            "output_dir": tmp_path / "out",
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "save_strategy": "no",
        }
        if not {"train_dir", "train_file", "validation_dir"} & values.keys():
            words = ("--train_file", *map(str, sorted(files.glob("train*"))), *words)
            common["validation_file"] = files / "test.parquet"
        named = [f"--{name}={value}" for name, value in (common | values).items() if value]
        return [*named, *words]

    return build
