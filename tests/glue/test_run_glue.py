# SPDX-License-Identifier: Apache-2.0
"""run_glue.py from the command line's words to the files that it leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from glue_scripts.run_glue import main
from shared_scripts.errors import InputError
from tests.glue.conftest import build_tokenizer, pairs

SCRIPT = Path(__file__).parents[2] / "glue_scripts" / "run_glue.py"
Flags = Callable[..., list[str]]
Results = Callable[[str], dict]
ALL_STAGES = ("--do_train", "--do_eval", "--do_predict")


def test_every_stage_leaves_its_results(
    flags: Flags, glue_dir: Path, results: Results, tmp_path: Path
) -> None:
    words = flags(*ALL_STAGES, task_name="mrpc", data_dir=glue_dir, sam="asam", sam_rho=0.2)
    metrics = main(words)
    train, evaluation, test = results("train"), results("eval"), results("predict")
    assert train["train_samples"] == 24
    assert 0 < train["median_seconds_per_update"] <= train["train_runtime"]
    assert 0 < train["seconds_per_update"] <= train["train_runtime"]
    assert {"eval_accuracy", "eval_f1", "eval_combined_score"} <= evaluation.keys()
    assert test["predict_samples"] == 6
    for stage in (train, evaluation, test):
        assert stage["max memory (MB)"] > 50
        assert stage["sam"]["method"]["name"] == "ASAM"
        assert stage["sam"]["method"]["rho"] == 0.2
    assert metrics["eval_accuracy"] == evaluation["eval_accuracy"]
    phases = ("ascent", "perturb", "descent", "restore", "optimizer", "peak")
    assert all(train[f"memory/{phase}_mb"] > 50 for phase in phases)


def test_all_results_joins_the_stages_and_repeats_the_run(
    flags: Flags, glue_dir: Path, results: Results
) -> None:
    words = flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir, token="secret")
    main(words)
    joined = results("all")
    peaks = {stage: results(stage)["max memory (MB)"] for stage in ("train", "eval")}
    assert joined["train max memory (MB)"] == peaks["train"]
    assert joined["eval max memory (MB)"] == peaks["eval"]
    assert joined["max memory (MB)"] == max(peaks.values())
    assert joined["train_loss"] == results("train")["train_loss"]
    assert joined["arguments"]["task_name"] == "mrpc"
    assert joined["arguments"]["max_steps"] == 2
    assert "learning_rate" not in joined["arguments"]
    assert f"--data_dir={glue_dir}" in joined["command"]
    assert "secret" not in json.dumps(joined)
    assert joined["versions"]["torch"] == metadata.version("torch")


def test_predictions_name_the_classes(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    main(flags("--do_predict", task_name="mrpc", data_dir=glue_dir))
    lines = (tmp_path / "out" / "predict_results_mrpc.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[0] for row in rows] == [str(n) for n in range(6)]
    assert {row[1] for row in rows} <= {"equivalent", "not_equivalent"}


def test_regression_with_a_test_set_whose_labels_are_secret(
    flags: Flags, glue_dir: Path, results: Results, tmp_path: Path
) -> None:
    metrics = main(flags(*ALL_STAGES, task_name="stsb", data_dir=glue_dir))
    assert {"eval_pearson", "eval_spearmanr", "eval_combined_score"} <= metrics.keys()
    assert "predict_pearson" not in results("predict")
    lines = (tmp_path / "out" / "predict_results_stsb.txt").read_text().splitlines()
    assert len(lines) == 7
    assert all(float(line.split("\t")[1]) == pytest.approx(0, abs=5) for line in lines[1:])


def test_mnli_without_mismatched_says_so_and_goes_on(
    flags: Flags, glue_dir: Path, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    main(flags("--do_train", "--do_eval", task_name="mnli", data_dir=glue_dir))
    assert "validation_mismatched.parquet does not exist" in caplog.text
    assert "eval_accuracy" in results("eval")
    assert "eval_accuracy_mm" not in results("eval")


def test_mnli_is_evaluated_on_matched_and_mismatched(
    flags: Flags, glue_dir: Path, results: Results, tmp_path: Path
) -> None:
    folder = tmp_path / "glue" / "mnli"
    folder.mkdir(parents=True)
    matched = Dataset.from_parquet(str(glue_dir / "mnli" / "validation_matched.parquet"))
    unlabelled = matched.remove_columns("label")
    matched.to_parquet(folder / "validation_matched.parquet")
    matched.select(range(5)).to_parquet(folder / "validation_mismatched.parquet")
    unlabelled.to_parquet(folder / "test_matched.parquet")
    unlabelled.select(range(5)).to_parquet(folder / "test_mismatched.parquet")
    words = ("--do_eval", "--do_predict")
    main(flags(*words, task_name="mnli", data_dir=folder.parent, max_eval_samples=8))
    assert {"eval_accuracy", "eval_accuracy_mm"} <= results("eval").keys()
    assert (results("eval")["eval_samples"], results("eval")["eval_samples_mm"]) == (8, 5)
    for name, rows in {"mnli": 12, "mnli-mm": 5}.items():
        text = (tmp_path / "out" / f"predict_results_{name}.txt").read_text()
        assert len(text.splitlines()) == 1 + rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def test_none_is_a_plain_fine_tune_and_sam_is_not(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    runs = {"none": "sam=none", "plain": "sam_rho=0.0", "sam": "sam_rho=0.5"}
    for name, choice in runs.items():
        field, value = choice.split("=")
        own = {field: value, "output_dir": tmp_path / name, "learning_rate": 0.01}
        main(flags("--do_train", task_name="mrpc", data_dir=glue_dir, **own))
    none, plain, sam = (weights(tmp_path / name) for name in runs)
    assert all(torch.equal(none[key], plain[key]) for key in none)
    assert not all(torch.equal(none[key], sam[key]) for key in none)


def test_own_files_without_a_task(
    flags: Flags, results: Results, tmp_path: Path, model_dir: str
) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "".join(f"cat {n},{'ABC'[n % 3]}\n" for n in range(9)))
    own = {"train_file": path, "validation_file": path, "test_file": path}
    main(flags(*ALL_STAGES, "--ignore_mismatched_sizes", **own))
    assert 0 <= results("eval")["eval_accuracy"] <= 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "A", "1": "B", "2": "C"}
    again = {"model_name_or_path": tmp_path / "out", "validation_file": path}
    assert main(flags("--do_eval", **again))["eval_accuracy"] == results("eval")["eval_accuracy"]


def test_the_head_of_a_model_of_the_task_keeps_its_order(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    main(flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir))
    before = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    model.config.id2label = {0: "Equivalent", 1: "Not_Equivalent"}
    model.config.label2id = {"Equivalent": 0, "Not_Equivalent": 1}
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.save_pretrained(tmp_path / "swapped")
    build_tokenizer().save_pretrained(tmp_path / "swapped")
    swapped = {"model_name_or_path": tmp_path / "swapped", "output_dir": tmp_path / "out2"}
    after = main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir, **swapped))
    for key in ("eval_loss", "eval_accuracy", "eval_f1"):
        assert after[key] == pytest.approx(before[key], abs=1e-6)


def test_lora_trains_adapters_only(
    flags: Flags, glue_dir: Path, tmp_path: Path, model_dir: str
) -> None:
    peft = pytest.importorskip("peft")
    lora = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "sam": "sam"}
    words = ("--use_peft", "--do_train", "--do_eval", "--lora_target_modules", "query", "value")
    main(flags(*words, task_name="mrpc", data_dir=glue_dir, **lora))
    saved = peft.LoraConfig.from_pretrained(tmp_path / "out")
    assert (saved.r, saved.lora_alpha, saved.lora_dropout) == (2, 4, 0.1)
    assert set(saved.target_modules) == {"query", "value"}
    assert not (tmp_path / "out" / "model.safetensors").exists()
    before = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    again = {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "again"}
    after = main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir, **again))
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-6)
    main(flags("--do_train", "--use_peft", task_name="mrpc", data_dir=glue_dir, **again))
    assert peft.LoraConfig.from_pretrained(tmp_path / "again").r == 2


def test_the_model_card_names_task_and_result(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    main(flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "GLUE MRPC" in card
    assert "hf_sam" in card
    assert str(tmp_path) not in card


def test_a_checkpoint_is_not_trained_over_but_resumed(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    common = {"task_name": "mrpc", "data_dir": glue_dir, "save_strategy": "steps", "save_steps": 1}
    main(flags("--do_train", **common, max_steps=4, output_dir=tmp_path / "whole"))
    main(flags("--do_train", **common, max_steps=4))
    for step in (3, 4):
        (tmp_path / "out" / f"checkpoint-{step}").rename(tmp_path / f"moved-{step}")
    with pytest.raises(InputError, match=r"checkpoint-2.*--resume_from_checkpoint"):
        main(flags("--do_train", **common, max_steps=4))
    main(flags("--do_train", **common, max_steps=4, resume_from_checkpoint="true"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(InputError, match="there is no such checkpoint"):
        main(flags("--do_train", **common, resume_from_checkpoint=tmp_path / "missing"))


def test_a_checkpoint_does_not_hinder_evaluation(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "checkpoint-7").mkdir(parents=True)
    assert "eval_loss" in main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir))


def test_nothing_to_do(flags: Flags, glue_dir: Path) -> None:
    with pytest.raises(InputError, match="at least one of --do_train --do_eval --do_predict"):
        main(flags(task_name="mrpc", data_dir=glue_dir))


def test_a_tokenizer_without_a_pad_token(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    build_tokenizer(pad=False).save_pretrained(tmp_path / "tokenizer")
    words = flags("--do_eval", task_name="mrpc", data_dir=glue_dir)
    with pytest.raises(InputError, match=r"no pad token.*--tokenizer_name"):
        main([*words, "--tokenizer_name", str(tmp_path / "tokenizer")])


def test_target_modules_that_the_model_does_not_have(flags: Flags, glue_dir: Path) -> None:
    pytest.importorskip("peft")
    words = flags("--do_train", "--use_peft", task_name="mrpc", data_dir=glue_dir)
    with pytest.raises(InputError, match=r"quary: BertFor.*did you mean 'query'.*Its linear"):
        main([*words, "--lora_target_modules", "value", "quary"])


def test_peft_is_not_installed(
    flags: Flags, glue_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        main(flags("--do_train", "--use_peft", task_name="mrpc", data_dir=glue_dir))


def test_too_long_is_cut_with_a_warning(
    flags: Flags, glue_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir, max_seq_length=99))
    assert "--max_seq_length 99 is more than the model takes: using 64" in caplog.text


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-W", "ignore", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(launcher, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_under_torchrun(flags: Flags, glue_dir: Path, results: Results, tmp_path: Path) -> None:
    words = flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
    done = run_script(*launcher, str(SCRIPT), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results("all")["train_samples"] == 24


@pytest.mark.slow
def test_under_accelerate_launch(flags: Flags, glue_dir: Path, results: Results) -> None:
    words = flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir)
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1")
    done = run_script(*launcher, str(SCRIPT), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results("all")["train_samples"] == 24


@pytest.mark.slow
def test_an_error_on_the_command_line_is_one_line(flags: Flags) -> None:
    done = run_script(str(SCRIPT), *flags("--do_train", task_name="mprc"))
    assert done.returncode == 2
    assert done.stderr.startswith("run_glue.py: error: --task_name mprc: unknown task")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.real
def test_the_real_mrpc(flags: Flags, real_data: Path, results: Results) -> None:
    words = flags("--do_train", "--do_eval", task_name="mrpc", data_dir=real_data / "glue")
    main(words)
    assert results("train")["train_samples"] == 3668
    assert results("eval")["eval_samples"] == 408


def test_files_of_a_task_replace_the_folder(
    flags: Flags, glue_dir: Path, results: Results, tmp_path: Path
) -> None:
    path = tmp_path / "more.jsonl"
    Dataset.from_dict(pairs(7)).to_json(path)
    own = {"task_name": "mrpc", "data_dir": glue_dir, "validation_file": path}
    main(flags("--do_train", "--do_eval", **own))
    assert results("train")["train_samples"] == 24
    assert results("eval")["eval_samples"] == 7
