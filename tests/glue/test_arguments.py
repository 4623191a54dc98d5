# SPDX-License-Identifier: Apache-2.0
"""The command line, and the file of arguments that it overrides."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainingArguments

from glue_scripts.arguments import (
    Arguments,
    DataTrainingArguments,
    ModelArguments,
    parse_arguments,
)
from glue_scripts.tasks import TASKS
from shared_scripts.errors import InputError

BASE = ["--model_name_or_path", "m", "--task_name", "mrpc"]
Flags = Callable[..., list[str]]


def write(path: Path, values: object) -> str:
    path.write_text(json.dumps(values))
    return str(path)


def test_defaults_are_those_of_transformers_own_script() -> None:
    model, data, args = parse_arguments(BASE)
    assert (data.max_seq_length, data.pad_to_max_length) == (128, True)
    assert (model.model_revision, model.use_fast_tokenizer) == ("main", True)
    assert (model.ignore_mismatched_sizes, model.use_peft) == (False, False)
    assert args.sam == "sam"


def test_the_arguments_of_transformers_own_script_are_there() -> None:
    data = "task_name dataset_name dataset_config_name max_seq_length overwrite_cache"
    data += " pad_to_max_length max_train_samples max_eval_samples max_predict_samples"
    data += " train_file validation_file test_file"
    model = "model_name_or_path config_name tokenizer_name cache_dir use_fast_tokenizer"
    model += " model_revision token trust_remote_code ignore_mismatched_sizes"
    assert {*data.split()} <= {field.name for field in dataclasses.fields(DataTrainingArguments)}
    assert {*model.split()} <= {field.name for field in dataclasses.fields(ModelArguments)}


def test_every_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    for group in (ModelArguments, DataTrainingArguments, TrainingArguments):
        for field in dataclasses.fields(group):
            assert not field.init or f"--{field.name}" in text
    for name in ("sam", "sam_rho", "sam_options", "sam_when", "sam_where", "sam_replay_rng"):
        assert f"--{name}" in text


def test_the_flags_of_this_script() -> None:
    words = "--use_peft --lora_r 4 --lora_alpha 8 --lora_dropout 0.1 --lora_target_modules q v"
    more = "--sam asam --sam_rho linear:0.1:0 --sam_where norm --no_pad_to_max_length --token t"
    model, data, args = parse_arguments([*BASE, *words.split(), *more.split()])
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (4, 8, 0.1)
    assert (model.use_peft, model.lora_target_modules) == (True, ["q", "v"])
    assert (args.sam, args.sam_rho, args.sam_where) == ("asam", "linear:0.1:0", ["norm"])
    assert (data.pad_to_max_length, model.token) == (False, "t")


FILE = {
    "model_name_or_path": "m",
    "task_name": "COLA",
    "learning_rate": "2e-5",
    "do_train": True,
    "eval_strategy": "epoch",
    "sam_where": ["no_norm", "no_embeddings"],
    "max_train_samples": None,
    "lr_scheduler_type": "cosine_with_restarts",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lora_target_modules": "query",
}


def check_file(parsed: Arguments) -> None:
    model, data, args = parsed
    assert (data.task_name, data.max_train_samples) == ("cola", None)
    assert (args.learning_rate, args.do_train) == (2e-5, True)
    assert args.eval_strategy == "epoch"
    assert args.sam_where == ["no_norm", "no_embeddings"]
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert model.lora_target_modules == ["query"]


def test_a_json_file(tmp_path: Path) -> None:
    check_file(parse_arguments([write(tmp_path / "a.json", FILE)]))


def test_a_yaml_file_with_yaml_s_own_traps(tmp_path: Path) -> None:
    text = """
model_name_or_path: m
task_name: COLA
learning_rate: 2e-5  # YAML 1.1 reads this as text
do_train: yes
eval_strategy: epoch
save_strategy: no  # and this as false
sam: none
sam-where: [no_norm, no_embeddings]
lr_scheduler_type: cosine_with_restarts
lr_scheduler_kwargs: {num_cycles: 2}
lora_target_modules: query
"""
    (tmp_path / "a.yaml").write_text(text)
    parsed = parse_arguments([str(tmp_path / "a.yaml")])
    check_file(parsed)
    assert parsed[2].save_strategy == "no"
    assert parsed[2].sam == "none"


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", FILE)
    words = "--learning_rate 1e-3 --do_train false --sam_where norm --lr_scheduler_kwargs {}"
    _, data, args = parse_arguments([path, *words.split(), "--task_name", "rte"])
    assert (args.learning_rate, args.do_train, data.task_name) == (1e-3, False, "rte")
    assert (args.sam_where, args.lr_scheduler_kwargs) == (["norm"], {})


@pytest.mark.parametrize("value", ["true", "all", "non_padding", "no"])
def test_a_bool_or_a_word(value: str) -> None:
    args = parse_arguments([*BASE, "--include_num_input_tokens_seen", value])[2]
    assert args.include_num_input_tokens_seen == {"true": "all"}.get(value, value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task_name", "mprc"],
            r"mprc: unknown task .did you mean 'mrpc'\?.\. Tasks: cola.*wnli",
        ),
        (["--sam_rhoo", "1"], r"'--sam_rhoo' .did you mean '--sam_rho'\?"),
        (["--max_seq_len", "9"], r"did you mean '--max_seq_length'\?"),
        (["stray"], "unknown argument 'stray'"),
        (["--max_seq_length", "long"], "--max_seq_length/--max-seq-length: invalid int"),
        (["--max_eval_samples", "0"], "--max_eval_samples 0: must be at least 1"),
        (["--lora_r", "0"], "--lora_r 0"),
        (["--lora_dropout", "1.5"], "--lora_dropout 1.5"),
        (["--sam", "asem"], "asam"),
        (["--sam_rho", "-1"], "sam_rho|rho"),
        (["--eval_strategy", "often"], "often"),
        (["--dataset_name", "imdb"], "--task_name mrpc and --dataset_name imdb: give one"),
    ],
)
def test_bad_flags(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_arguments([*BASE, *words])


def test_no_data_and_no_model() -> None:
    with pytest.raises(InputError, match="no data: give --task_name"):
        parse_arguments(["--model_name_or_path", "m"])
    with pytest.raises(InputError, match="--model_name_or_path"):
        parse_arguments(["--task_name", "mrpc"])
    with pytest.raises(InputError, match=r"--data_dir d.*say which with --task_name"):
        parse_arguments(["--model_name_or_path", "m", "--data_dir", "d"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"task_nam": "mrpc"}', r"a.json: unknown argument 'task_nam'.*'task_name'\?"),
        ("a.json", "{", "a.json: not valid JSON"),
        ("a.json", '{"debug": ["much"]}', "a.json: argument --debug: invalid DebugOption value"),
        ("a.yaml", "a: [", "a.yaml: not valid YAML"),
        ("a.yaml", "- mrpc", "a.yaml: must hold one mapping"),
        ("a.toml", "", r"a.toml: the first argument.*\.yaml, \.yml, \.json"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        parse_arguments([str(tmp_path / name)])


def test_a_missing_file() -> None:
    with pytest.raises(InputError, match=r"missing.json: there is no such file"):
        parse_arguments(["missing.json"])


def test_the_nine_tasks() -> None:
    assert sorted(TASKS) == "cola mnli mrpc qnli qqp rte sst2 stsb wnli".split()
    assert {name: task.num_labels for name, task in TASKS.items() if task.num_labels != 2} == {
        "mnli": 3,
        "stsb": 1,
    }
