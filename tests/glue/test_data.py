# SPDX-License-Identifier: Apache-2.0
"""Where splits come from, what is refused, and what the tokens are."""

import csv
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Value
from transformers import BertConfig

from glue_scripts.arguments import DataTrainingArguments
from glue_scripts.data import GlueData, load_data
from glue_scripts.labels import label_encoder
from glue_scripts.sources import Part
from glue_scripts.tasks import TASKS, Task
from glue_scripts.tokens import tokenize
from shared_scripts.errors import InputError
from tests.glue.conftest import build_tokenizer, pairs

Columns = dict[str, list]


def write(path: Path, columns: Columns) -> str:
    """Writes a table in the format that the path's suffix names."""
    if path.suffix == ".parquet":
        Dataset.from_dict(columns).to_parquet(path)
    elif path.suffix in (".json", ".jsonl"):
        Dataset.from_dict(columns).to_json(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def load(*stages: str, **arguments: object) -> GlueData:
    return load_data(DataTrainingArguments(**arguments), stages, BertConfig())


def validate(path: str, task: str = "mrpc") -> Part:
    return load("validation", task_name=task, validation_file=path).parts["validation"][task]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    columns = pairs(4)
    columns["sentence1"][:3] = ["null", "42", 'a "quoted" word']
    if suffix == "tsv":
        columns["sentence1"][2] = "a plain word"
    data = validate(write(tmp_path / f"v.{suffix}", columns)).data
    assert data["sentence1"][:] == columns["sentence1"]
    assert data["label"][:] == columns["label"]


def test_tsv_keeps_lone_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "v.tsv"
    path.write_text('sentence1\tsentence2\tlabel\n"a cat\tran\t1\na dog\t"sat\t0\n')
    data = validate(str(path)).data
    assert data["sentence1"][:] == ['"a cat', "a dog"]
    assert data["sentence2"][:] == ["ran", '"sat']


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_reads_its_own_columns(tmp_path: Path, task: Task) -> None:
    columns: Columns = {key: ["a cat", "a dog", "sat"] for key in task.keys}
    columns["label"] = [0.0, 2.5, 5.0] if task.is_regression else [0, 1, task.num_labels - 1]
    path = write(tmp_path / "v.parquet", columns)
    data = load("validation", task_name=task.name, validation_file=path)
    part = data.parts["validation"][task.name]
    args = DataTrainingArguments(task_name=task.name, pad_to_max_length=False)
    order = list(range(task.num_labels))
    tokens = tokenize(part, data.task, build_tokenizer(), order, 16, args)
    assert tokens["labels"][:] == columns["label"]
    assert len(tokens["input_ids"][0]) == (4 if len(task.keys) == 1 else 7)


def test_labels_by_name_by_class_label_and_as_text(tmp_path: Path) -> None:
    encode = label_encoder(validate(write(tmp_path / "a.csv", pairs(4))), TASKS["mrpc"])
    assert [encode(v) for v in (1, "1", 1.0, "equivalent", "not_equivalent")] == [1, 1, 1, 1, 0]
    assert [encode(v) for v in (2, -1, 0.5, None, "same", "")] == [None] * 6
    swapped = Dataset.from_dict(pairs(4)).cast_column(
        "label", ClassLabel(names=["equivalent", "not_equivalent"])
    )
    swapped.to_parquet(tmp_path / "b.parquet")
    encode = label_encoder(validate(str(tmp_path / "b.parquet")), TASKS["mrpc"])
    assert [encode(v) for v in (0, 1)] == [1, 0]


def test_targets_follow_the_order_of_the_model(tmp_path: Path) -> None:
    part = validate(write(tmp_path / "v.csv", pairs(4)))
    args = DataTrainingArguments(task_name="mrpc")
    tokens = tokenize(part, TASKS["mrpc"], build_tokenizer(), [1, 0], 16, args)
    assert tokens["labels"][:] == [1, 0, 1, 0]
    assert {len(row) for row in tokens["input_ids"]} == {16}


def test_integer_scores_of_a_regression_become_floats(tmp_path: Path) -> None:
    part = validate(write(tmp_path / "v.jsonl", pairs(4)), "stsb")
    args = DataTrainingArguments(task_name="stsb")
    tokens = tokenize(part, TASKS["stsb"], build_tokenizer(), [0], 16, args)
    assert tokens.features["labels"] == Value("float64")


def test_limits_apply_before_the_check(glue_dir: Path) -> None:
    limits = {"max_train_samples": 5, "max_eval_samples": 3, "max_predict_samples": 99}
    stages = ("train", "validation", "test")
    parts = load(*stages, task_name="mrpc", data_dir=str(glue_dir), **limits).parts
    assert [
        len(parts[s][n].data) for s, n in zip(stages, ("train", "mrpc", "mrpc"), strict=True)
    ] == [
        5,
        3,
        6,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 1, 2, 1]}, r"v.parquet: row 3: label 2 is outside.*0 \(not_equivalent\)"),
        ({"label": [0, -1, 1, 1]}, r"row 2: label -1 is outside.*without labels"),
        ({"label": ["equivalent", "x", "1", "0"]}, "row 2: label 'x' is outside"),
        ({"label": [0.0, 1.0, 1.0, 0.5]}, "row 4: label 0.5 is outside"),
        ({"label": [0, 1, None, 0]}, "row 3: label None is outside"),
        ({"sentence1": ["a", None, "b", "c"]}, "row 2, column 'sentence1': None is not a text"),
        ({"sentence2": [1, 2, 3, 4]}, "row 1, column 'sentence2': 1 is not a text"),
        ({"sentence2": None}, r"v.parquet: column 'sentence2' is missing .did you mean 'senten"),
        ({"label": None, "labels": [0, 1, 0, 1]}, r"'label' is missing .did you mean 'labels'\?"),
    ],
)
def test_bad_rows_and_columns(tmp_path: Path, change: dict, message: str) -> None:
    columns = {key: value for key, value in (pairs(4) | change).items() if value is not None}
    path = write(tmp_path / "v.parquet", columns)
    with pytest.raises(InputError, match=message):
        validate(path)


@pytest.mark.parametrize("value", [5.1, -0.1, float("nan"), float("inf")])
def test_scores_outside_zero_to_five(tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "v.parquet", pairs(3) | {"label": [0.0, 5.0, value]})
    with pytest.raises(InputError, match=r"row 3: label .* is outside the range 0.0 to 5.0"):
        validate(path, "stsb")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_an_empty_label_cell(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"v.{suffix}", pairs(3) | {"label": [0, "", 1]})
    with pytest.raises(InputError, match=r"row 2: label None is outside"):
        validate(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.xlsx", b"", r"cannot read '\.xlsx'; the formats are \.csv, \.tsv"),
        ("v.parquet", b"not parquet", "v.parquet: cannot be read as parquet"),
        ("v.jsonl", b"{broken", "v.jsonl: cannot be read as json"),
        ("v.csv", b"", "v.csv: cannot be read as csv"),
        ("v.csv", b"sentence1,sentence2,label\n", "v.csv: has no rows"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        validate(str(tmp_path / name))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"missing\.csv: there is no such file"):
        validate("missing.csv")


def test_no_hub_and_no_files_says_the_three_ways() -> None:
    with pytest.raises(InputError, match=r"nyu-mll/glue.*three ways.*--data_dir.*--train_file"):
        load("train", "validation", task_name="rte")
    with pytest.raises(InputError, match=r"cannot get someone/other.*three ways"):
        load("train", dataset_name="someone/other")


def test_a_data_dir_without_the_task(glue_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder 'rte'.*it has: mnli, mrpc, stsb.*three ways"):
        load("train", task_name="rte", data_dir=str(glue_dir))
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        load("train", task_name="rte", data_dir=str(tmp_path / "nowhere"))


def test_a_data_dir_without_the_split(glue_dir: Path) -> None:
    with pytest.raises(InputError, match=r"no test data .*test_matched.*test_mismatched"):
        load("test", task_name="mnli", data_dir=str(glue_dir))


def test_own_files_lack_a_stage(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", pairs(4))
    with pytest.raises(InputError, match="--validation_file is missing"):
        load("train", "validation", train_file=path)


def test_own_files_say_what_the_task_is(tmp_path: Path) -> None:
    text = {"text": ["a", "b", "c", "d"]}
    cases = {
        "a.csv": (text | {"label": ["x", "y", "x", "z"]}, Task(None, ("text",), ("x", "y", "z"))),
        "b.jsonl": (text | {"label": [3, 1, 3, 10]}, Task(None, ("text",), ("1", "3", "10"))),
        "c.csv": (text | {"label": [0.5, 1.5, 0.1, 9.9]}, Task(None, ("text",))),
        "d.csv": (pairs(4), Task(None, ("sentence1", "sentence2"), ("0", "1"))),
    }
    for name, (columns, expected) in cases.items():
        assert load("train", train_file=write(tmp_path / name, columns)).task == expected


def test_own_files_with_a_class_that_training_lacks(tmp_path: Path) -> None:
    train = write(tmp_path / "t.csv", {"text": ["a", "b"], "label": ["x", "y"]})
    other = write(tmp_path / "v.csv", {"text": ["a", "b"], "label": ["x", "w"]})
    with pytest.raises(InputError, match=r"v.csv: row 2: label 'w' is outside.*: x, y"):
        load("train", "validation", train_file=train, validation_file=other)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["x", "y"]}, "has no column with text"),
        ({"text": ["a", "b"]}, "has no column 'label'"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, "needs two classes"),
    ],
)
def test_own_files_that_are_no_task(tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("train", train_file=write(tmp_path / "t.csv", columns))


def test_secret_labels_of_a_test_set(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", pairs(3) | {"label": [-1, -1, -1]})
    part = load("test", task_name="mrpc", test_file=path).parts["test"]["mrpc"]
    assert "label" not in part.data.column_names
    some = write(tmp_path / "u.csv", pairs(3) | {"label": [1, -1, 0]})
    with pytest.raises(InputError, match="row 2: label -1"):
        load("test", task_name="mrpc", test_file=some)


def test_the_hub_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str, **options: object) -> dict[str, Dataset]:
        asked.append((path, name, options["token"]))
        return {"train": Dataset.from_dict(pairs(4)), "validation": Dataset.from_dict(pairs(2))}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    args = DataTrainingArguments(task_name="mrpc")
    data = load_data(args, ("train", "validation"), BertConfig(), token="t")
    assert asked == [("nyu-mll/glue", "mrpc", "t")]
    assert len(data.parts["train"]["train"].data) == 4
    with pytest.raises(InputError, match="split 'test' on the Hub"):
        load("test", task_name="mrpc")


def test_reading_is_cached_and_seen_again_when_the_file_changes(tmp_path: Path) -> None:
    def read() -> list:
        return validate(str(tmp_path / "v.csv")).data["label"][:]

    write(tmp_path / "v.csv", pairs(4))
    assert read() == [0, 1, 0, 1]
    write(tmp_path / "v.csv", pairs(5))
    assert read() == [0, 1, 0, 1, 0]


class TestHeldOutShare:
    """`--train_val_split`: the validation set is not read."""

    def split(self, folder: Path, seed: int = 1, **more: object) -> dict[str, list]:
        given = {"task_name": "mrpc", "data_dir": str(folder), "train_val_split": 0.25} | more
        args = DataTrainingArguments(**given)
        data = load_data(args, ("train", "validation"), BertConfig(), seed=seed)
        parts = {"train": "train", "validation": "mrpc"}
        return {stage: data.parts[stage][name].data["idx"][:] for stage, name in parts.items()}

    def folder(self, tmp_path: Path, columns: Columns, task: str = "mrpc") -> Path:
        """A folder of a task whose validation set cannot be read."""
        (tmp_path / task).mkdir(parents=True)
        write(tmp_path / task / "train.parquet", columns)
        (tmp_path / task / "validation.parquet").write_bytes(b"no table")
        return tmp_path

    def test_it_is_disjoint_and_depends_on_the_seed(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, pairs(40))
        found = self.split(folder)
        assert len(found["validation"]) == 10
        assert sorted(found["train"] + found["validation"]) == list(range(40))
        assert found == self.split(folder) != self.split(folder, seed=2)

    def test_limits_come_first(self, tmp_path: Path) -> None:
        """What is never trained on is not held out either."""
        found = self.split(self.folder(tmp_path, pairs(40)), max_train_samples=20)
        assert sorted(found["train"] + found["validation"]) == list(range(20))
        assert len(found["validation"]) == 5

    def test_a_class_of_one_row_stays_in_training(self, tmp_path: Path) -> None:
        labels = [1] + [0] * 39
        folder = self.folder(tmp_path, pairs(40) | {"label": labels})
        assert all(0 in self.split(folder, seed)["train"] for seed in range(8))

    def test_scores_are_no_classes(self, tmp_path: Path) -> None:
        columns = pairs(8) | {"label": [n / 2 for n in range(8)]}
        folder = self.folder(tmp_path, columns, "stsb")
        args = DataTrainingArguments(task_name="stsb", data_dir=str(folder), train_val_split=0.5)
        data = load_data(args, ("validation",), BertConfig())
        assert len(data.parts["validation"]["stsb"].data) == 4 and "train" not in data.parts

    @pytest.mark.parametrize("share", [0.0, 1.0, 0.9])
    def test_what_is_refused(self, tmp_path: Path, share: float) -> None:
        folder = self.folder(tmp_path, pairs(4))
        with pytest.raises(InputError, match=f"--train_val_split {share}: "):
            self.split(folder, **{"train_val_split": share})
