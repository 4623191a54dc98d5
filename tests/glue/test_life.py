# SPDX-License-Identifier: Apache-2.0
"""What people do with the script beside one run of one task: checkpoints, seeds, several tasks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from glue_scripts.run_glue import main
from shared_scripts.errors import InputError
from tests.glue.conftest import WORDS, pairs, sentence

Flags = Callable[..., list[str]]
Results = Callable[[str], dict]


def table(path: Path, labels: list[object]) -> Path:
    """Writes texts that say their label, as JSON lines."""
    rows = [
        {"text": f"the {WORDS[labels.index(v) % 8 + 2]} {sentence(n)}", "label": v}
        for n, v in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["classes", "scores", "several", "numbers"])
def test_a_checkpoint_of_the_script_works_again(
    flags: Flags, tmp_path: Path, results: Results, kind: str
) -> None:
    labels: list[object] = {
        "classes": ["US", "us", "Us"],
        "scores": [0.5, 2.0, 1.25],
        "several": [["x", "y"], [], ["z"]],
        "numbers": [10, 9, 2],
    }[kind] * 4
    own = table(tmp_path / "t.jsonl", labels)
    more = {"problem_type": "multi_label_classification"} if kind == "several" else {}
    both = {"train_file": own, "validation_file": own}
    first = main(flags("--do_train", "--do_eval", **both, **more, learning_rate=0.01))
    again = {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "again"}
    second = main(flags("--do_eval", "--do_predict", **again, validation_file=own, test_file=own))
    for key in first:
        if key.startswith("eval_") and not key.endswith(("runtime", "second")):
            assert second[key] == pytest.approx(first[key], abs=1e-6)
            assert second[key.replace("eval_", "predict_")] == pytest.approx(first[key], abs=1e-6)
    written = (tmp_path / "again" / "predict_results_custom.txt").read_text().splitlines()
    assert len(written) == 13
    main(flags("--do_train", **again, **more, train_file=own))
    before, after = (
        json.loads((tmp_path / f / "config.json").read_text()) for f in ("out", "again")
    )
    assert before["id2label"] == after["id2label"]
    assert before["problem_type"] == after["problem_type"]


def test_sam_on_several_classes_per_text(flags: Flags, tmp_path: Path, results: Results) -> None:
    own = table(tmp_path / "t.jsonl", [["x"], ["x", "y"], [], ["y"], ["z"]] * 4)
    common = {"train_file": own, "problem_type": "multi_label_classification", "seed": 3}
    weights = {}
    for name, choice in {"none": "sam=none", "zero": "sam_rho=0.0", "sam": "sam_rho=0.5"}.items():
        field, value = choice.split("=")
        run = {"output_dir": tmp_path / name, "learning_rate": 0.01, field: value}
        main(flags("--do_train", **common, **run))
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(weights["none"][key], weights["zero"][key]) for key in weights["none"])
    assert not torch.equal(
        weights["none"]["classifier.weight"], weights["sam"]["classifier.weight"]
    )


def test_predictions_of_several_classes_are_lists(flags: Flags, tmp_path: Path) -> None:
    own = table(tmp_path / "t.jsonl", [["x"], ["y"], ["x", "é"]] * 4)
    words = flags(
        *("--do_train", "--do_eval", "--do_predict"),
        **{"train_file": own, "validation_file": own, "test_file": own},
        problem_type="multi_label_classification",
        **{"max_steps": 60, "learning_rate": 0.02, "sam": "none"},
    )
    assert main(words)["eval_f1"] == 1.0
    lines = (tmp_path / "out" / "predict_results_custom.txt").read_text().splitlines()
    assert lines[1:4] == ['0\t["x"]', '1\t["y"]', '2\t["x", "é"]']


def test_several_seeds_give_mean_and_spread(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    words = flags("--do_train", "--do_eval", task_name="mrpc", data_dir=glue_dir, max_steps=1)
    metrics = main([*words, "--seeds", "1", "2"])
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == [1, 2]
    single = [json.loads((out / f"seed-{n}" / "eval_results.json").read_text()) for n in (1, 2)]
    losses = [one["eval_loss"] for one in single]
    assert losses[0] != losses[1]
    found = summary["tasks"]["mrpc"]["eval_loss"]
    assert found["values"] == losses
    assert found["mean"] == pytest.approx(sum(losses) / 2) == metrics["eval_loss"]
    assert found["sd"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    run = json.loads((out / "seed-2" / "all_results.json").read_text())
    assert run["arguments"]["seed"] == 2
    alone = main([*words, "--seed", "2", "--output_dir", str(tmp_path / "alone")])
    assert alone["eval_loss"] == losses[1]


def test_several_tasks_in_folders_of_their_own(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    common = {"data_dir": glue_dir, "max_steps": 1}
    metrics = main(flags("--do_train", "--do_eval", task_name="mrpc,stsb", **common))
    assert {"mrpc_eval_f1", "stsb_eval_pearson"} <= metrics.keys()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mrpc", "stsb", "summary.json"]
    with pytest.raises(InputError, match=r"has no folder for cola, qnli, qqp, rte, sst2, wnli;"):
        main(flags("--do_train", task_name="all", **common))
    with pytest.raises(InputError, match="--seeds 1 1: give each seed once"):
        main([*flags("--do_train", task_name="mrpc", **common), "--seeds", "1", "1"])
    with pytest.raises(InputError, match="several tasks or seeds cannot go on"):
        words = flags("--do_train", task_name="mrpc,stsb", resume_from_checkpoint="true", **common)
        main(words)
    with pytest.raises(InputError, match="--metric_for_best_model f1: this task has no such"):
        words = flags("--do_train", task_name="mrpc,stsb", metric_for_best_model="f1", **common)
        main(words)
    with pytest.raises(InputError, match="mrpc,stsb: files are for one task"):
        main(flags("--do_train", task_name="mrpc,stsb", train_file="t.csv"))


def test_the_diagnostic_set_of_a_model_of_mnli(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    main(flags("--do_train", task_name="mnli", data_dir=glue_dir))
    columns = {"premise": ["a cat", "a dog"], "hypothesis": ["the", "on"], "label": [-1, -1]}
    (tmp_path / "glue" / "ax").mkdir(parents=True)
    Dataset.from_dict(columns).to_parquet(tmp_path / "glue" / "ax" / "test.parquet")
    model = {"model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "ax"}
    words = flags("--do_predict", task_name="ax", data_dir=tmp_path / "glue", **model)
    main(words)
    lines = (tmp_path / "ax" / "predict_results_ax.txt").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].split("\t")[1] in ("entailment", "neutral", "contradiction")
    Dataset.from_dict(columns | {"label": [0, 1]}).to_parquet(tmp_path / "known.parquet")
    known = flags("--do_predict", task_name="ax", test_file=tmp_path / "known.parquet", **model)
    assert "predict_matthews_correlation" in main(known)
    with pytest.raises(InputError, match="--task_name ax: it has only a test set"):
        main([*words, "--do_eval"])


def test_a_broken_file_of_results_does_not_cost_the_evaluation(
    flags: Flags, glue_dir: Path, tmp_path: Path, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    for text in ('{"eval_accuracy": 0.5, "tr', '{"train max memory (MB)": "many"}'):
        (tmp_path / "out" / "all_results.json").write_text(text)
        main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir))
        assert results("all")["eval_loss"] == results("eval")["eval_loss"]
        assert results("all")["max memory (MB)"] > 50
    assert "all_results.json is broken" in caplog.text


def test_a_checkpoint_cut_short_is_passed_over(
    flags: Flags, glue_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = {"task_name": "mrpc", "data_dir": glue_dir, "save_strategy": "steps", "save_steps": 1}
    main(flags("--do_train", **common, max_steps=3))
    whole = load_file(tmp_path / "out" / "model.safetensors")
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")
    broken = tmp_path / "out" / "checkpoint-2" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    main(flags("--do_train", **common, max_steps=3, resume_from_checkpoint="true"))
    assert "checkpoint-2 is broken (model.safetensors is cut short" in caplog.text
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_settings_of_the_task_are_checked_before_the_model_is_loaded(
    flags: Flags, glue_dir: Path, tmp_path: Path
) -> None:
    common = {"data_dir": glue_dir, "eval_strategy": "epoch"}
    words = flags("--do_train", task_name="mrpc", metric_for_best_model="pearson", **common)
    with pytest.raises(InputError, match=r"pearson: .*Metrics: loss, accuracy, f1, combined_score"):
        main(words)
    words = flags("--do_train", task_name="stsb", label_smoothing_factor=0.1, **common)
    with pytest.raises(InputError, match="one class per example, and this one is a regression"):
        main(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"save_strategy": "best"}, "no trainer can be built: .*metric_for_best_model"),
        ({"sam_where": "nrom"}, "--sam_where='nrom' matches no"),
        ({"optim": "galore_adamw"}, "the training cannot begin: .*galore"),
    ],
)
def test_what_the_trainer_refuses_is_one_line(
    flags: Flags, glue_dir: Path, more: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main(flags("--do_train", task_name="mrpc", data_dir=glue_dir, **more))


def test_an_error_after_the_first_update_keeps_its_traceback(
    flags: Flags, glue_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("hf_sam.SAMTrainer.training_step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        main(flags("--do_train", task_name="mrpc", data_dir=glue_dir))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "json"])
def test_bytes_that_are_not_utf_8(flags: Flags, tmp_path: Path, suffix: str) -> None:
    columns = pairs(4) | {"sentence1": ["the", "café", "naïve", "on"]}
    path = tmp_path / f"t.{suffix}"
    separator = "\t" if suffix == "tsv" else ","
    if suffix.startswith("json"):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        rows = [separator.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        text = "\n".join([separator.join(columns), *rows])
    path.write_bytes(text.encode("latin-1"))
    line = 2 if suffix.startswith("json") else 3
    with pytest.raises(InputError, match=rf"t.{suffix}: .*line {line} is not UTF-8 .*iconv -f lat"):
        main(flags("--do_train", task_name="mrpc", train_file=path))


def test_half_a_character(flags: Flags, tmp_path: Path) -> None:
    rows = ['{"text": "the cat", "label": 0}', '{"text": "caf\\ud800", "label": 1}']
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match="t.jsonl: "):
        main(flags("--do_train", train_file=tmp_path / "t.jsonl"))


def test_bytes_in_a_column_that_declares_texts(flags: Flags, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"the cat", b"caf\xe9", b"on"])
    raw = pa.StringArray.from_buffers(3, *texts.buffers()[1:])
    pq.write_table(pa.table({"text": raw, "label": [0, 1, 0]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet: row 2, column 'text': cannot be read: .*utf"):
        main(flags("--do_train", train_file=tmp_path / "t.parquet"))
