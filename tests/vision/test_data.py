# SPDX-License-Identifier: Apache-2.0
"""Where the examples come from, which are used, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared_scripts.arguments import InputError
from tests.vision.conftest import NAMES, picture, table
from vision_scripts.arguments import DataTrainingArguments
from vision_scripts.data import load_parts
from vision_scripts.labels import class_names, encode_labels
from vision_scripts.part import Part, Source

BOTH = ("train", "validation")


def load(stages: tuple[str, ...] = BOTH, **arguments: Any) -> dict[str, Part]:
    return load_parts(DataTrainingArguments(**arguments), stages)


def parquet(files: Path) -> dict[str, Any]:
    train = [str(files / "train-0.parquet"), str(files / "train-1.parquet")]
    return {"train_file": train, "validation_file": [str(files / "test.parquet")]}


def test_parquet_files_follow_each_other_and_name_their_rows(files: Path) -> None:
    parts = load(**parquet(files))
    train = parts["train"]
    assert (len(train.labels), len(parts["validation"].labels)) == (24, 9)
    assert train.labels == [n % 3 for n in range(24)]
    assert train.images[17].name == f"{files / 'train-1.parquet'}, row 2"
    assert train.images[17].read() != train.images[1].read()
    assert class_names(parts, ()) == tuple(NAMES)


def test_a_folder_per_class(image_dir: Path) -> None:
    part = load(("train",), train_dir=str(image_dir))["train"]
    assert part.names == tuple(NAMES)
    assert part.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert part.images[4].name == str(image_dir / "dog" / "1.png")


def test_a_held_out_share_is_disjoint_and_the_same_each_time(image_dir: Path) -> None:
    parts, again = (load(train_dir=str(image_dir), train_val_split=0.25) for _ in range(2))
    names = {stage: {i.name for i in part.images} for stage, part in parts.items()}
    assert (len(names["train"]), len(names["validation"])) == (9, 3)
    assert len(names["train"] | names["validation"]) == 12
    assert names == {stage: {i.name for i in part.images} for stage, part in again.items()}
    only = load(("validation",), train_dir=str(image_dir), train_val_split=0.25)
    assert {image.name for image in only["validation"].images} == names["validation"]


def test_a_limit_draws_the_same_rows_each_time(files: Path) -> None:
    some = load(**parquet(files), max_train_samples=10, max_eval_samples=20)
    again = load(**parquet(files), max_train_samples=10)
    names = [image.name for image in some["train"].images]
    assert len(set(names)) == 10 and names == [image.name for image in again["train"].images]
    assert len(some["validation"].labels) == 9
    assert len(set(some["train"].labels)) == 3, "the first ten would do, but not of sorted folders"


def test_columns_have_usual_names_or_those_given(tmp_path: Path) -> None:
    rows = table(6).rename_columns({"image": "img", "label": "fine"})
    rows.to_parquet(tmp_path / "a.parquet")
    file = {"train_file": [str(tmp_path / "a.parquet")]}
    assert load(("train",), **file, label_column_name="fine")["train"].labels == [0, 1, 2] * 2
    with pytest.raises(InputError, match="no column 'label' or 'labels'. There: img, fine. Give"):
        load(("train",), **file)
    with pytest.raises(InputError, match="'fein' .did you mean 'fine'..\\. There"):
        load(("train",), **file, label_column_name="fein")


def part(labels: list[Any], names: tuple[str, ...] | None = None) -> Part:
    return Part([Source(f"f, row {n + 1}", bytes) for n in range(len(labels))], labels, names, "f")


@pytest.mark.parametrize(
    ("labels", "names", "found", "numbers"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        ([3, 10, 3], None, ("3", "10"), [0, 1, 0]),
        ([2, 0], ("x", "y", "z"), ("x", "y", "z"), [2, 0]),
    ],
)
def test_labels_become_numbers(labels: Any, names: Any, found: Any, numbers: Any) -> None:
    own = part(labels, names)
    assert class_names({"train": own}, ()) == found
    assert encode_labels(own, found).tolist() == numbers


def test_a_checkpoint_keeps_the_order_of_its_head() -> None:
    own = part([0, 1], ("a", "b"))
    assert class_names({"train": own}, ("b", "a")) == ("b", "a")
    assert encode_labels(own, ("b", "a")).tolist() == [1, 0]
    assert class_names({"train": own}, ("b", "c")) == ("a", "b")
    assert class_names({"validation": own}, ("c", "b", "a")) == ("c", "b", "a")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 3, 1], ("a", "b", "c"), "f, row 2: label 3 is outside the 3 classes: a, b, c"),
        ([0, -1, 1], ("a", "b"), "f, row 2: label -1 is outside the 2 classes"),
        ([0, 1, -1], None, "f, row 3: label -1 is outside the 2 classes: 0, 1"),
        (["a", "b", None], None, "f, row 3: label None is outside the 2 classes: a, b"),
    ],
)
def test_a_label_outside_the_range(labels: Any, names: Any, message: str) -> None:
    own = part(labels, names)
    with pytest.raises(InputError, match=message):
        encode_labels(own, class_names({"train": own}, ()))


def test_one_class_only() -> None:
    with pytest.raises(InputError, match="f: a classifier needs two classes; all labels are b"):
        class_names({"train": part([1, 1], ("a", "b"))}, ())


def test_a_validation_class_that_training_lacks() -> None:
    sets = {"train": part([0, 1], ("a", "b", "c")), "validation": part([1, 2], ("a", "b", "c"))}
    with pytest.raises(InputError, match="f, row 2: no training image has the class 'c'; .* a, b"):
        class_names(sets, ())


def test_folders_and_files_that_hold_nothing(tmp_path: Path, files: Path) -> None:
    wrong = [
        ({"train_dir": str(tmp_path / "no")}, "there is no such folder"),
        ({"train_dir": str(tmp_path)}, "has no folders; it needs one per class"),
        ({"train_file": ["a.csv"]}, "is no .parquet file; for image files give --train_dir"),
        ({"train_file": ["a.parquet"]}, "a.parquet: there is no such file"),
        ({"validation_file": [str(files / "test.parquet")]}, "no train data"),
        ({"dataset_name": "nobody/nothing"}, "cannot get nobody/nothing from the Hub.*train_dir"),
        ({"train_val_split": 1.0, "train_dir": "x"}, "--train_val_split 1.0: must be in"),
        ({"train_dir": "x", "train_file": ["y"]}, "--train_dir and --train_file: give one"),
        ({"max_eval_samples": 0, "train_dir": "x"}, "--max_eval_samples 0: must be at least 1"),
        ({}, "no data: give --train_dir"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            load(("train",), **arguments)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="the folder 'cat' has no image"):
        load(("train",), train_dir=str(tmp_path))
    picture(0).save(tmp_path / "cat" / "a.JPG", "JPEG")
    assert load(("train",), train_dir=str(tmp_path))["train"].labels == [0]
    with pytest.raises(InputError, match="of 1 images in .* that is 0"):
        load(train_dir=str(tmp_path))


def test_files_that_are_no_images_of_a_class(
    image_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = (".notes/a.png", "cat/._1.png", "cat/.notes/a.png", ".DS_Store")
    for name in hidden:
        (image_dir / name).parent.mkdir(exist_ok=True)
        (image_dir / name).write_bytes(b"no image")
    assert len(load(("train",), train_dir=str(image_dir))["train"].labels) == 12
    assert not caplog.text, "hidden files are the business of others"
    for name in ("loose.png", "cat/a.heic"):
        (image_dir / name).write_bytes(b"no image")
    assert len(load(("train",), train_dir=str(image_dir))["train"].labels) == 12
    assert f"2 files are left out, such as {image_dir / 'loose.png'}" in caplog.text


@pytest.mark.parametrize("label", [0.5, [1], {"a": 1}])
def test_a_label_that_is_neither_name_nor_number(label: Any, tmp_path: Path) -> None:
    table(2, label=[label, label]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet, row 1: column 'label' holds .*; a class is"):
        load(("train",), train_file=[str(tmp_path / "a.parquet")])


def test_a_broken_or_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError, match="a.parquet: cannot be read as parquet"):
        load(("train",), train_file=[str(tmp_path / "a.parquet")])
    table(0).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="b.parquet: has no rows"):
        load(("train",), train_file=[str(tmp_path / "b.parquet")])


def test_a_cell_without_an_image(tmp_path: Path) -> None:
    rows = table(4, image=["x.png", None, "y", "z"])
    rows.to_parquet(tmp_path / "a.parquet")
    own = load(("train",), train_file=[str(tmp_path / "a.parquet")])["train"]
    with pytest.raises(ValueError, match="column 'image' holds"):
        own.images[1].read()
