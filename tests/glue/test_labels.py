# SPDX-License-Identifier: Apache-2.0
"""How the labels of a head, of a file and of a task are matched, and what is refused."""

import json
import logging
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, List
from transformers import BertConfig

from glue_scripts.arguments import DataTrainingArguments
from glue_scripts.data import GlueData, load_data
from glue_scripts.labels import label_encoder, label_order, match
from glue_scripts.sources import Part
from glue_scripts.tasks import MULTI, REGRESSION, SINGLE, TASKS, Task
from shared_scripts.errors import InputError

HEAD = ["BertForSequenceClassification"]


def head(names: list[str], **fields: object) -> BertConfig:
    """Returns the configuration of a checkpoint with a head of these classes."""
    ids = dict(enumerate(names))
    return BertConfig(id2label=ids, label2id={v: k for k, v in ids.items()}, **fields)


def lines(path: Path, labels: list, **columns: list) -> str:
    """Writes texts with these labels as JSON lines."""
    rows = [{"text": f"cat {n}", "label": label} for n, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(config: BertConfig | None = None, *stages: str, **arguments: object) -> GlueData:
    return load_data(DataTrainingArguments(**arguments), stages, config or BertConfig())


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (["us", "US"], ["US", "us"], [1, 0]),
        (["Neutral", "YES", "no"], ["yes", "no", "neutral"], [1, 2, 0]),
        (["A", "a"], ["a", "b"], None),
        (["A", "B"], ["a", "A"], None),
        (["A", "a"], ["A", "A"], None),
        (["x"], ["x", "y"], None),
        (["straße", "b"], ["STRASSE", "B"], [0, 1]),
    ],
)
def test_names_match_exactly_first_then_without_case(
    names: list[str], labels: list[str], order: list[int] | None
) -> None:
    assert match(names, labels) == order


def test_names_in_label2id_alone() -> None:
    ids = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}
    config = BertConfig(**ids, label2id={"Equivalent": 0, "not_equivalent": 1})
    assert label_order(config, TASKS["mrpc"]) == [1, 0]


def test_a_head_with_other_names_is_said_with_both_lists(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = head(["contradictory", "neutral", "entailed"])
    assert label_order(foreign, TASKS["mnli"]) == [0, 1, 2]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Head: contradictory, neutral, entailed" in record.message
    assert "Task: entailment, neutral, contradiction" in record.message


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], "mnli", [2, 1, 0]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], "mnli", [0, 1, 2]),
        (["a", "b"], "mnli", [0, 1, 2]),
        (["score"], "stsb", [0]),
    ],
)
def test_a_head_that_matches_or_says_nothing_is_not_warned_of(
    names: list[str], task: str, order: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert label_order(head(names), TASKS[task]) == order
    assert not caplog.records


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (head(["US", "us"]), Task(None, ("text",), ("US", "us"))),
        (head(["score"], problem_type=REGRESSION), Task(None, ("text",))),
        (BertConfig(num_labels=1, architectures=HEAD), Task(None, ("text",))),
        (BertConfig(architectures=HEAD), Task(None, ("text",), ("LABEL_0", "LABEL_1"))),
        (
            head(["x", "y"], problem_type=MULTI),
            Task(None, ("text",), ("x", "y"), is_multi_label=True),
        ),
    ],
)
@pytest.mark.parametrize("column", ["none", "null", "empty", "minus one"])
def test_a_head_is_enough_to_predict(
    tmp_path: Path, config: BertConfig, task: Task, column: str
) -> None:
    if column == "none":
        (tmp_path / "t.csv").write_text("text\ncat 0\ncat 1\n")
    elif column == "empty":
        (tmp_path / "t.csv").write_text("text,label\ncat 0,\ncat 1,\n")
    else:
        value = None if column == "null" else -1
        Dataset.from_json(lines(tmp_path / "t.jsonl", [value, value])).to_csv(tmp_path / "t.csv")
    data = load(config, "test", test_file=str(tmp_path / "t.csv"))
    assert data.task == task
    assert data.parts["test"]["custom"].data.column_names == ["text"]


def test_prediction_without_head_or_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\ncat\n")
    with pytest.raises(InputError, match=r"t.csv: has no column 'label'.*--label_column_name"):
        load(None, "test", test_file=str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("names", "labels", "classes", "said"),
    [
        (["LABEL_0", "LABEL_1"], [0, 1, 1], ("0", "1"), False),
        (["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"], ("LABEL_0", "LABEL_1"), False),
        (["LABEL_0", "LABEL_1"], ["good", "bad", "bad"], ("bad", "good"), True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [2, 0], ("0", "1", "2"), False),
        (["US", "us"], ["us", "US"], ("US", "us"), False),
    ],
)
def test_evaluation_takes_the_classes_of_the_head(
    tmp_path: Path,
    names: list[str],
    labels: list,
    classes: tuple[str, ...],
    said: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = head(names, architectures=HEAD)
    path = lines(tmp_path / "v.jsonl", labels)
    assert load(config, "validation", validation_file=path).task.labels == classes
    assert ("in this order" in caplog.text) is said


def test_whole_scores_go_on_with_a_head_of_scores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = BertConfig(num_labels=1, architectures=HEAD)
    path = lines(tmp_path / "t.jsonl", [0, 1, 2, 3])
    assert load(config, "validation", validation_file=path).task.is_regression
    assert load(config, "train", train_file=path).task.is_regression
    assert "are taken as scores" in caplog.text
    classes = load(config, "train", train_file=path, problem_type=SINGLE).task
    assert classes.labels == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [1]], r"row 1: label \[0\] is a list: .*--problem_type multi_label"),
        ([{"a": 1}, {"a": 2}], r"row 1: label \{'a': 1\} is no text and no number"),
        ([1, "x"], r"row 2: label 'x' is of another kind than 1: write all labels as texts"),
        ([1.5, True], r"row 2: label True is of another kind than 1.5"),
        (["x", [1]], r"row 2: label \[1\] is no text and no number"),
        ([None, None], "the column 'label' is empty"),
        ([0, 1, None], "row 3: label None is outside .*it is empty"),
        (["x", "y", " "], "row 3: label ' ' is outside .*it is empty"),
        (["x" * 500, None], r"two classes; the labels are \['xxx"),
    ],
)
def test_what_is_no_label(tmp_path: Path, labels: list, message: str) -> None:
    path = lines(tmp_path / "t.jsonl", labels)
    with pytest.raises(InputError, match=f"t.jsonl: .*{message}"):
        load(None, "train", train_file=path)


@pytest.mark.parametrize("value", [[1], {"a": 1}, "1.5", float("inf"), 1e300, 2**80])
def test_a_foreign_label_of_a_task_is_one_line(value: object) -> None:
    part = Part(Dataset.from_dict({"label": [0, 1]}), "v")
    assert label_encoder(part, TASKS["rte"])(value) is None


def declared(path: Path, labels: list, names: list[str], several: bool = False) -> str:
    """Writes a parquet file whose features declare the classes."""
    data = Dataset.from_dict({"text": [f"cat {n}" for n in range(len(labels))], "label": labels})
    kind = ClassLabel(names=names)
    data.cast_column("label", List(kind) if several else kind).to_parquet(path)
    return str(path)


def test_declared_classes_count_not_those_of_a_sample(tmp_path: Path) -> None:
    path = declared(tmp_path / "t.parquet", [0, 0, 0, 1, 2], ["x", "y", "z"])
    data = load(None, "train", train_file=path, max_train_samples=2)
    assert data.task.labels == ("x", "y", "z")
    assert len(data.parts["train"]["train"].data) == 2
    plain = lines(tmp_path / "t.jsonl", ["x", "x", "y"])
    assert load(None, "train", train_file=plain, max_train_samples=2).task.labels == ("x", "y")


def test_a_class_that_the_whole_training_set_lacks(tmp_path: Path) -> None:
    path = declared(tmp_path / "t.parquet", [0, 2], ["x", "y", "z"])
    with pytest.raises(InputError, match=r"t.parquet: no training row has the class 'y'"):
        load(None, "train", train_file=path)
    several = declared(tmp_path / "m.parquet", [[0, 2], []], ["x", "y", "z"], several=True)
    with pytest.raises(InputError, match=r"m.parquet: no training row has the class 'y'"):
        load(None, "train", train_file=several, problem_type=MULTI)


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,number,note,topic,label\n1,11,a,x,9\n2,12,b,y,8\n")
    own = {"train_file": str(path), "label_column_name": "topic"}
    data = load(None, "train", **own, text_column_names=["number,note"])
    assert data.task == Task(None, ("number", "note"), ("x", "y"))
    assert data.parts["train"]["train"].data["number"][:] == ["11", "12"]
    assert load(None, "train", **own).task.keys == ("note",)


def test_many_classes_with_short_names(tmp_path: Path) -> None:
    codes = ["nan", "inf", "nul", "eng", "yes", "no", *(f"c{n}" for n in range(71))]
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"the cat,{code}\n" for code in codes))
    task = load(None, "train", train_file=str(path)).task
    assert task.labels == tuple(sorted(codes))
    assert len(task.labels) == 77


def test_several_classes_per_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [["y"], ["x", "z"], [], ["z"]])
    data = load(None, "train", train_file=path, problem_type=MULTI)
    assert data.task == Task(None, ("text",), ("x", "y", "z"), is_multi_label=True)
    encode = label_encoder(data.parts["train"]["train"], data.task)
    assert encode(["z", "x"]) == [1.0, 0.0, 1.0]
    assert encode([]) == [0.0, 0.0, 0.0]
    assert [encode(v) for v in (["w"], "x", None, [None])] == [None] * 4
    single = lines(tmp_path / "s.jsonl", ["x", "y"])
    with pytest.raises(InputError, match=r"s.jsonl: row 1: label 'x' is not a list"):
        load(None, "train", train_file=single, problem_type=MULTI)


def test_a_head_of_another_kind(tmp_path: Path) -> None:
    path = lines(tmp_path / "v.jsonl", ["x", "y"])
    with pytest.raises(InputError, match=r"--problem_type regression: .* head is for single"):
        load(head(["x", "y"]), "validation", validation_file=path, problem_type=REGRESSION)
    with pytest.raises(InputError, match="gives 2 scores per text"):
        load(head(["a", "b"], problem_type=REGRESSION), "validation", validation_file=path)


def test_a_file_that_declares_other_classes(tmp_path: Path) -> None:
    train = declared(tmp_path / "t.parquet", [0, 1, 2], ["x", "y", "z"])
    fewer = declared(tmp_path / "v.parquet", [0, 1], ["z", "x"])
    data = load(None, "train", "validation", train_file=train, validation_file=fewer)
    encode = label_encoder(data.parts["validation"]["custom"], data.task)
    assert [encode(value) for value in (0, 1)] == [2, 0]
    other = declared(tmp_path / "w.parquet", [0, 1], ["x", "w"])
    with pytest.raises(InputError, match=r"w.parquet: row 2: label 1 .*declares it as 'w'"):
        load(None, "train", "validation", train_file=train, validation_file=other)


def test_scores_with_a_damaged_one_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\na,1.0\nb,0.5\nc,nan\n")
    with pytest.raises(InputError, match=r"t.csv: row 3: label 'nan' is no score, as others are"):
        load(None, "train", train_file=str(path))
    classes = load(None, "train", train_file=str(path), problem_type=SINGLE).task
    assert classes.labels == ("0.5", "1.0", "nan")
