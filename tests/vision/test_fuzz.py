# SPDX-License-Identifier: Apache-2.0
"""Folders and tables with random faults: the run trains on the right classes, or is refused."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shared_scripts.arguments import InputError
from tests.vision.conftest import TINY, picture, png
from tests.vision.test_decode import photos
from vision_scripts.run_image_classification import main

pytestmark = pytest.mark.slow
FUZZ = settings(max_examples=100, suppress_health_check=list(HealthCheck))
CLASSES = ("cat", "dog", "fish")
MODES = ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")


def encoded(mode: str, form: str) -> bytes:
    """Return an image of a mode in a format; where it cannot hold it, as a colour PNG."""
    buffer = io.BytesIO()
    try:
        picture(1).convert(mode).save(buffer, form, save_all=form == "GIF")
    except (OSError, ValueError, KeyError):
        return png(picture(1))
    return buffer.getvalue()


def damaged(content: bytes, at: float, noise: bytes) -> bytes:
    """Return a file with some bytes overwritten."""
    start = int(at * len(content))
    return content[:start] + noise + content[start + len(noise) :]


files = st.one_of(
    st.builds(encoded, st.sampled_from(MODES), st.sampled_from(["PNG", "TIFF", "GIF", "JPEG"])),
    photos,
    st.builds(
        damaged,
        st.builds(encoded, st.just("RGB"), st.sampled_from(["PNG", "TIFF", "GIF", "JPEG", "WEBP"])),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=20),
    ),
    st.builds(
        lambda side: png(Image.fromarray(np.zeros((side, 3, 3), np.uint8))), st.integers(1, 40)
    ),
    st.builds(lambda share: png(picture(1))[: int(share * 200)], st.floats(0, 1)),
    st.binary(max_size=30),
)
names = st.sampled_from(["x.png", "x.jpg", "x.gif", "X.TIFF", ".x.png", "x.txt", "\udcf1.png"])


def nested(root: Path) -> None:
    """Put all classes a level down."""
    shutil.move(root, around := root.with_name("around"))
    root.mkdir()
    shutil.move(around, root / "animal")


def splits(root: Path) -> None:
    """Make two splits of the classes."""
    nested(root)
    shutil.move(root / "animal", root / "train")
    shutil.copytree(root / "train", root / "test")


def doubled(root: Path) -> None:
    """Make two super-classes with the same classes."""
    nested(root)
    shutil.copytree(root / "animal", root / "toy")


def linked(root: Path) -> None:
    """Put a class on another disk, and all images of another one in a folder within it."""
    shutil.move(root / "cat", root.parent / "disk")
    (root / "cat").symlink_to(root.parent / "disk")
    (root / "dog" / "more").symlink_to(root.parent / "disk")


def circular(root: Path) -> None:
    """Add links that lead up, to themselves and to nothing."""
    for name, to in {"up": "..", "self": "self", "gone": "nowhere", "g.png": "nowhere.png"}.items():
        (root / "cat" / name).symlink_to(to)


def emptied(root: Path) -> None:
    """Take all images out of a class."""
    for path in (root / "cat").iterdir():
        path.unlink()


def loose(root: Path) -> None:
    """Add files that are of no class."""
    (root / "README.txt").write_text("no image")
    shutil.copy(root / "dog" / "1.png", root / "loose.png")


SHAPES: dict[Callable[[Path], None], bool] = {
    nested: True,
    linked: True,
    circular: True,
    loose: True,
    splits: False,
    doubled: False,
    emptied: False,
}


def run(folder: Path, *words: str) -> tuple[str | None, list[str]]:
    """Return the refusal, if there was one, and the classes of the model."""
    common = (
        *("--config_name=cifar_resnet", f"--config_overrides={TINY}", "--use_cpu", "--do_train"),
        *("--disable_tqdm=true", "--report_to=none", "--max_steps=1", "--save_strategy=no"),
        *(f"--output_dir={folder / 'out'}", f"--cache_dir={folder / 'cache'}"),
    )
    try:
        main([*common, *words])
    except InputError as refused:
        return str(refused), []
    config = json.loads((folder / "out" / "config.json").read_text())
    return None, list(config["id2label"].values())


def check(refusal: str | None, classes: list[str], expected: list[str], named: str) -> None:
    """Check that the run trained on the right classes, or names the file in one line."""
    if refusal is None:
        assert classes == expected
    else:
        assert named in refusal and "\n" not in refusal
        assert "Error object" not in refusal and " at 0x" not in refusal, "an address"


@FUZZ
@given(
    shape=st.none() | st.sampled_from(list(SHAPES)),
    added=st.dictionaries(names, files, max_size=3),
    limit=st.none() | st.integers(1, 5),
)
def test_folders(
    shape: Callable[[Path], None] | None,
    added: dict[str, bytes],
    limit: int | None,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "images"
        for number in range(9):
            path = root / CLASSES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
        for name, content in added.items():
            (root / "dog" / name).write_bytes(content)
        if shape is not None:
            shape(root)
        words = [] if limit is None else [f"--max_train_samples={limit}"]
        refusal, classes = run(Path(place), f"--train_dir={root}", *words)
        check(refusal, classes, list(CLASSES), str(root))
        if shape is not None and not SHAPES[shape]:
            assert refusal is not None
        elif not added:
            assert refusal is None


LABELS = {
    "numbers": [0, 1, 2] * 3,
    "names": list(CLASSES) * 3,
    "cases": ["US", "us", "b"] * 3,
}
cells = st.one_of(st.none(), files, st.text(max_size=5), st.integers(0, 3))
odd_labels = st.one_of(st.none(), st.just(""), st.just(-1), st.text(max_size=3), st.floats())


def written(path: Path, images: list[Any], labels: list[Any], as_struct: bool) -> bool:
    """Write a table; return whether Arrow has a type for what the columns hold."""
    pictures = [{"bytes": c, "path": None} for c in images] if as_struct else images
    try:
        table = pyarrow.table({"image": pyarrow.array(pictures), "label": pyarrow.array(labels)})
    except (pyarrow.ArrowException, ValueError, TypeError):
        return False
    pyarrow.parquet.write_table(table, path)
    return True


@FUZZ
@given(
    kind=st.sampled_from(list(LABELS)),
    odd=st.dictionaries(st.integers(0, 8), cells, max_size=2),
    label=st.none() | st.tuples(st.integers(0, 8), odd_labels),
    as_struct=st.booleans(),
    wound=st.none() | st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=30)),
    cut=st.none() | st.floats(0, 1),
)
def test_tables(
    kind: str,
    odd: dict[int, Any],
    label: tuple[int, Any] | None,
    as_struct: bool,
    wound: tuple[float, bytes] | None,
    cut: float | None,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "train.parquet"
        images: list[Any] = [png(picture(number)) for number in range(9)]
        labels: list[Any] = list(LABELS[kind])
        for row, cell in odd.items():
            images[row] = cell
        if label is not None:
            labels[label[0]] = label[1]
        if not written(path, images, labels, as_struct):
            return
        content = path.read_bytes()
        content = damaged(content, *wound) if wound else content
        path.write_bytes(content if cut is None else content[: int(cut * len(content))])
        refusal, classes = run(Path(place), f"--train_file={path}")
        whole = wound is None and cut is None
        given_names = {str(name) for name in labels if name not in (None, "", -1)}
        expected = sorted(name for name in given_names if name.strip())
        check(refusal, classes, expected if whole else classes, str(path))
        if whole and not odd and label is None:
            assert refusal is None
