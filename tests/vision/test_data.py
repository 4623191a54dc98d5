# SPDX-License-Identifier: Apache-2.0
"""Where the examples come from, which are used, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image

from shared_scripts.arguments import InputError
from tests.vision.conftest import NAMES, picture, table
from vision_scripts.arguments import DataTrainingArguments
from vision_scripts.data import load_parts
from vision_scripts.labels import class_names
from vision_scripts.part import Part

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


def held_out(folder: Path, share: float = 0.25, seed: int = 3, **more: Any) -> dict[str, set[str]]:
    arguments = DataTrainingArguments(train_dir=str(folder), train_val_split=share, **more)
    parts = load_parts(arguments, BOTH, seed=seed)
    return {stage: {image.name for image in part.images} for stage, part in parts.items()}


def test_a_held_out_share_is_disjoint_and_depends_on_the_seed(
    image_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = held_out(image_dir)
    assert (len(names["train"]), len(names["validation"])) == (9, 3)
    assert len(names["train"] | names["validation"]) == 12
    said = "3 of the 12 training images are held out to evaluate on, as --train_val_split 0.25 and"
    assert f"{said} seed 3 say" in caplog.text
    assert names == held_out(image_dir)
    assert names["validation"] not in [held_out(image_dir, seed=n)["validation"] for n in (4, 5)]
    arguments = DataTrainingArguments(train_dir=str(image_dir), train_val_split=0.25)
    only = load_parts(arguments, ("validation",), seed=3)["validation"]
    assert {image.name for image in only.images} == names["validation"]


def test_a_given_share_leaves_the_validation_images_unread(
    image_dir: Path, files: Path, tmp_path: Path
) -> None:
    """They may be anything, or not be there at all."""
    for validation in ({"validation_dir": "nowhere"}, {"validation_file": ["nowhere.parquet"]}):
        assert held_out(image_dir, **validation) == held_out(image_dir)


def test_a_held_out_share_leaves_one_of_each_class(image_dir: Path) -> None:
    for path in [*image_dir.glob("cat/*")][1:]:
        path.unlink()
    for seed in range(9):
        train = held_out(image_dir, 0.6, seed)["train"]
        assert {Path(name).parent.name for name in train} == set(NAMES)
    with pytest.raises(
        InputError, match="split 0.75: of 9 examples .* that is 7, and one of each of 3 classes"
    ):
        held_out(image_dir, 0.75)


def test_a_truncated_set_keeps_its_classes(tmp_path: Path) -> None:
    names = [f"c{n:02}" for n in range(40)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    rows = {"image": table(40)["image"], "label": list(range(40))}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "declared.parquet")
    plain = table(40, label=names)
    plain.to_parquet(tmp_path / "plain.parquet")
    for file in ("declared", "plain"):
        files = [str(tmp_path / f"{file}.parquet")]
        parts = load(train_file=files, validation_file=files, max_train_samples=5)
        assert len(parts["train"].labels) == 5
        assert class_names(parts, ()) == tuple(names)


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
    with pytest.raises(InputError, match="of 1 examples in .* that is 0, and one of each of 1"):
        load(train_dir=str(tmp_path))


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
