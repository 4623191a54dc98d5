# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot work are refused when they are parsed; help comes at once."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from glue_scripts.arguments import DataTrainingArguments, ModelArguments, parse_arguments
from hf_sam import SAMTrainingArguments
from shared_scripts.errors import InputError, one_line, shown
from shared_scripts.settings import check_enough, check_metric, check_smoothing
from shared_scripts.usage import show
from vision_scripts import arguments as vision

ROOT = Path(__file__).parents[2]
BASE = ["--model_name_or_path", "m", "--task_name", "mrpc", "--do_train", "--use_cpu"]
NEW = "activation_checkpointing"  # from transformers 5.23 on
CHECKPOINTING = NEW if hasattr(TrainingArguments, NEW) else "gradient_checkpointing"
STEPS = "--eval_strategy steps --save_strategy steps"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: .* at least 1"),
        ("--per_device_eval_batch_size -8", "--per_device_eval_batch_size -8: .* at least 1"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: .* at least 1"),
        ("--eval_accumulation_steps 0", "--eval_accumulation_steps 0: .* at least 1"),
        ("--save_total_limit 0", "--save_total_limit 0: .* at least 1"),
        ("--learning_rate nan", "--learning_rate nan: must be at least 0"),
        ("--learning_rate=-1e-3", "--learning_rate -0.001: must be at least 0"),
        ("--weight_decay -0.1", "--weight_decay -0.1: must be at least 0"),
        ("--max_grad_norm -1", "--max_grad_norm -1.0: must be at least 0"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("--seed 4294967296", "--seed 4294967296: must be below 4294967296"),
        ("--label_smoothing_factor 1.0", "--label_smoothing_factor 1.0: must be below 1"),
        ("--num_train_epochs 0", "--num_train_epochs 0.0: nothing would be trained"),
        ("--neftune_noise_alpha -1", "--neftune_noise_alpha -1.0: must be at least 0"),
        ("--label_names foo", r"--label_names \['foo'\]: the metrics of this script need None"),
        ("--eval_do_concat_batches false", "--eval_do_concat_batches False: .* need True"),
        ("--batch_eval_metrics", "--batch_eval_metrics True: .* need False"),
        (
            "--dataloader_num_workers 1 --dataloader_prefetch_factor 0",
            "--dataloader_prefetch_factor 0: must be at least 1",
        ),
        (f'--{CHECKPOINTING}_kwargs {{"a":1}}', "_kwargs .'a': 1.: .*unexpected keyword"),
        ("--save_steps 0", "--save_steps 0.0: must be above 0"),
        ("--eval_strategy steps --eval_steps -5", "--eval_steps -5.0: must be above 0"),
        ("--logging_steps -3", "--logging_steps -3.0: must be above 0"),
        ("--report_to tensorbord", r"--report_to tensorbord: unknown .did you mean 'tensorboard'"),
        ("--report_to comet_ml", r"--report_to comet_ml: .*comet.*--report_to none"),
        ("--optim adamw", "adamw"),
        ("--optim ademamix", r"--optim ademamix: cannot be built .*bitsandbytes"),
        ("--optim_args foo=1", "--optim_args foo=1: --optim adamw_torch.* takes none of them"),
        ("--optim adafactor --optim_args nonsense", "--optim adafactor with --optim_args nonsense"),
        ("--adam_beta1 1.5", r"--optim adamw_torch.*: cannot be built .*betas 1.5.*Invalid beta"),
        ('--lr_scheduler_type polynomial --lr_scheduler_kwargs {"a":1}', "polynomial with --lr_s"),
        ("--lr_scheduler_type lineer", "lineer"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "requires an eval strategy"),
        ("--load_best_model_at_end --save_strategy epoch", "strategy"),
        (f"--load_best_model_at_end {STEPS} --eval_steps 3 --save_steps 4", "multiple"),
        ("--fp16 --bf16", "At most one of fp16 and bf16"),
        ("--deepspeed missing.json", "missing.json|deepspeed"),
        ("--output_dir /dev/null", "--output_dir /dev/null: /dev/null is a file, not a folder"),
        ("--output_dir /dev/null/a/b", "/dev/null is a file, not a folder"),
    ],
)
def test_values_that_trainer_finds_out_late(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_arguments([*BASE, *words.split()])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        "--optim sgd --learning_rate 0",
        "--optim rmsprop --optim_args momentum=0.1",
        "--optim adafactor",
        '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":0.1}',
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch",
        "--num_train_epochs 0 --max_steps 3",
        "--report_to none",
        f'--{CHECKPOINTING} --{CHECKPOINTING}_kwargs {{"use_reentrant":true}}',
        f"--load_best_model_at_end {STEPS} --eval_steps 3 --save_steps 6",
        "--warmup_steps 0.1 --save_steps 0.5",
    ],
)
def test_values_that_work(words: str) -> None:
    parse_arguments([*BASE, *words.split()])


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"--output_dir {tmp_path}/a: {tmp_path} cannot be writ"):
        parse_arguments([*BASE, "--output_dir", str(tmp_path / "a")])


@pytest.mark.parametrize("wanted", [None, "loss", "eval_f1", "f1", "eval_runtime"])
def test_metrics_that_there_are(wanted: str | None) -> None:
    check_metric(TrainingArguments("out", metric_for_best_model=wanted), ["accuracy", "f1"])


@pytest.mark.parametrize(
    ("wanted", "fields", "message"),
    [
        ("acuracy", {}, r"acuracy: .* no such metric .did you mean 'accuracy'.*Metrics: loss, acc"),
        ("eval_f2", {}, "eval_f2: this task has no such metric"),
        ("f1", {"prediction_loss_only": True}, "f1: this task has no such metric"),
    ],
)
def test_metrics_that_there_are_not(wanted: str, fields: dict, message: str) -> None:
    args = TrainingArguments("out", metric_for_best_model=wanted, **fields)
    with pytest.raises(InputError, match=f"--metric_for_best_model {message}"):
        check_metric(args, ["accuracy", "f1"])


def test_a_training_set_of_which_nothing_is_left() -> None:
    args = TrainingArguments(
        "out", dataloader_drop_last=True, per_device_train_batch_size=8, use_cpu=True
    )
    check_enough(args, 8)
    with pytest.raises(InputError, match="--dataloader_drop_last: 7 examples make no batch of 8"):
        check_enough(args, 7)
    check_enough(TrainingArguments("out", use_cpu=True), 1)


def test_smoothing_is_for_single_classes() -> None:
    args = TrainingArguments("out", label_smoothing_factor=0.1)
    check_smoothing(args, "single_label_classification")
    for problem in ("regression", "multi_label_classification"):
        check_smoothing(TrainingArguments("out"), problem)
        with pytest.raises(InputError, match=f"--label_smoothing_factor 0.1: .*{problem}"):
            check_smoothing(args, problem)


def stands(name: str, text: str) -> bool:
    """Whether a flag has a line of its own; Python 3.13 shows its value after its other spellings.

    Before: `--flag VALUE, --other VALUE`; since: `--flag, --other VALUE`.
    """
    return f"  --{name} " in text or f"  --{name}, " in text


def test_help_has_every_argument_those_of_sam_first() -> None:
    text = show(ROOT / "glue_scripts", "run_glue.py")
    groups = (ModelArguments, DataTrainingArguments, SAMTrainingArguments)
    for field in (field for group in groups for field in dataclasses.fields(group)):
        assert not field.init or stands(field.name, text), field.name
    assert text.index("--sam_rho") < text.index("--model_name_or_path") < text.index("--optim ")
    assert "Rank of the LoRA adapters. (default: 8)" in text
    lines = " ".join(text.split())
    assert "--no_pad_to_max_length" in text
    assert "into train_results.json. (default: True)" in lines
    assert "(required)" in text


def test_help_of_the_other_script() -> None:
    text = show(ROOT / "vision_scripts", "run_image_classification.py")
    for group in (vision.ModelArguments, vision.DataTrainingArguments, SAMTrainingArguments):
        for field in dataclasses.fields(group):
            assert not field.init or stands(field.name, text), field.name


def test_help_needs_no_heavy_import() -> None:
    script = "glue_scripts/run_glue.py"
    code = (
        f"import runpy, sys; sys.argv = ['s', '--help']; runpy.run_path({script!r}, "
        "run_name='__main__'); print(sorted({'torch', 'datasets'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line(ValueError("x" * 400)) == "x" * 297 + "..."
    assert shown("é" * 100) == "'" + "é" * 76 + "..."
