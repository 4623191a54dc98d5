# SPDX-License-Identifier: Apache-2.0
"""Which folders are the classes, and what happens to links and to everything else."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from shared_scripts.arguments import InputError
from vision_scripts.folders import from_folder
from vision_scripts.part import Part


def fill(root: Path, *paths: str) -> Path:
    """Make files, which are not read here."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def read(root: Path, *paths: str) -> Part:
    return from_folder(fill(root, *paths), "--train_dir")


def counts(part: Part) -> dict[str, int]:
    assert part.names is not None
    return dict(Counter(part.names[label] for label in part.labels))


SUPER = ("animal/cat/0.png", "animal/dog/0.png", "thing/car/0.png")


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (("cat/0.png", "dog/0.JPG", "dog/1.webp"), {"cat": 1, "dog": 2}),
        (SUPER, {"car": 1, "cat": 1, "dog": 1}),
        (("a/animal/cat/0.png", "a/animal/dog/0.png"), {"cat": 1, "dog": 1}),
        (("cat/images/0.png", "dog/images/0.png"), {"cat": 1, "dog": 1}),
        (("train/cat/0.png", "train/dog/0.png"), {"cat": 1, "dog": 1}),
        (("cat/0.png", "cat/more/1.png", "cat/more/yet/2.png", "dog/0.png"), {"cat": 3, "dog": 1}),
        (("animal/cat/0.png",), {"cat": 1}),
        (("__MACOSX/cat/._0.png", "cat/0.png", "dog/0.png"), {"cat": 1, "dog": 1}),
    ],
)
def test_the_innermost_folders_are_the_classes(
    paths: tuple[str, ...], found: dict[str, int], tmp_path: Path
) -> None:
    part = read(tmp_path, *paths)
    assert counts(part) == found
    assert part.names == tuple(sorted(found))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ("train/cat/0.png", "test/cat/0.png"),
            "its folders test, train are splits .*_dir .*/train$",
        ),
        (("train/0.png", "Val/0.png"), "its folders Val, train are splits"),
        (("x/train/cat/0.png", "x/dev/dog/0.png"), "its folders dev, train are splits.*/x/train$"),
        (("cat/train/0.png", "cat/val/0.png", "dog/train/0.png"), "its folders train, val are sp"),
        (
            ("animal/mouse/0.png", "animal/cat/0.png", "device/mouse/0.png"),
            "would be cat, mouse, of which mouse are in several .* animal/mouse and device/mouse",
        ),
        (("cat/0.png", "dog/more/0.png"), "of different depth, such as cat and dog/more"),
        (("train/cat/0.png", "unknown/0.png"), "of different depth, such as unknown and train/cat"),
        ((*SUPER, "animal/fox/a.txt"), "the folder 'animal/fox' has no image"),
        ((*SUPER, "plant/oak/a.txt"), "the folder 'plant' has no image"),
        (("0.png",), "has no folders; it needs one per class"),
    ],
)
def test_what_is_not_clear_is_refused(paths: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, *paths)


def test_what_a_user_may_not_expect_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "flat", "cat/0.png", "dog/0.png", ".hidden/0.png", "cat/._1.png", ".DS_Store")
    assert not caplog.text, "hidden files are the business of others"
    read(tmp_path / "super", *SUPER)
    assert "folders of 2 levels could be the classes; those taken are car, cat, dog" in caplog.text
    deep = fill(tmp_path / "deep", "cat/0.png", "cat/a/1.png", "dog/0.png", "b.png", "cat/c.heic")
    read(deep)
    assert f"1 images are in folders within a class's folder, such as {deep}/cat/a/1" in caplog.text
    assert f"2 files are left out, such as {deep / 'cat' / 'c.heic'}: in no class" in caplog.text


def test_links_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = fill(tmp_path / "disk", "cat/0.png", "cat/1.png", "dog/0.png", "one.png")
    root = fill(tmp_path / "root", "cat/own.png")
    (root / "dog").symlink_to(disk / "dog")
    (root / "cat" / "more").symlink_to(disk / "cat")
    (root / "cat" / "linked.png").symlink_to(disk / "one.png")
    (tmp_path / "also").symlink_to(root)
    assert counts(read(tmp_path / "also")) == {"cat": 4, "dog": 1}
    assert "links are left out" not in caplog.text


def test_links_that_lead_nowhere_or_in_a_circle_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "root", "cat/0.png", "dog/0.png")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    (root / "fox").symlink_to(tmp_path / "fox")
    (root / "dog" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "dog" / "here").symlink_to(".")
    os.mkfifo(root / "cat" / "pipe.png")
    assert counts(read(root)) == {"cat": 1, "dog": 1}
    assert f"5 links are left out, such as {root / 'cat' / 'gone.png'}" in caplog.text
    assert f"1 files are left out, such as {root / 'cat' / 'pipe.png'}" in caplog.text


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "cat/0.png", "dog/0.png")
    real = Path.iterdir

    def refuse(path: Path):
        if path.name == "dog":
            raise PermissionError("Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="dog: cannot be read as a folder: Permission denied"):
        read(tmp_path)


def test_names_of_another_encoding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = os.fsdecode(b"mu\xf1oz")
    part = read(tmp_path, f"{odd}/{odd}.png", "smith/0.png", f"{odd}.txt")
    assert part.names == (odd, "smith")
    assert part.images[0].name.endswith(r"mu\xf1oz.png")
    caplog.text.encode()
