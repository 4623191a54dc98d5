# SPDX-License-Identifier: Apache-2.0
"""Random tables with random faults: run_glue trains well, or refuses in one line."""

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartModel, RobertaConfig, RobertaModel

from glue_scripts.run_glue import main
from glue_scripts.tasks import PROBLEMS
from shared_scripts.running import command_line
from tests.glue.conftest import SPECIAL, WORDS, build_tokenizer

Row = dict[str, Any]
ROWS = 8
LABELS: dict[str, list[Any]] = {
    "numbers": [0, 1],
    "large numbers": [3, 10, -7],
    "names": ["good", "bad"],
    "names by case": ["US", "us", "Us"],
    "words for nothing": ["NA", "null", "nan"],
    "truths": [True, False],
    "scores": [0.5, 1.25, 3.0],
    "lists": [["a"], ["a", "b"], []],
    "objects": [{"a": 1}, {"a": 2}],
    "mixed": [1, "x", None],
    "holes": ["x", "y", None],
    "one class": ["x"],
    "nothing": [None],
    "not finite": [1.0, float("nan"), float("inf")],
}
TEXTS: list[Any] = [
    *("the cat sat", "a dog", "good", "", " ", "42", "None", "very " * 60, "zzz", "a [SEP] b"),
    *("[PAD]", '"', "a\tb", "a\nb", "\u200b", "é", "💥", "a\x00b", None, 7, 1.5, ["a"], {"a": 1}),
]
BYTES = ["latin-1", "utf-16", "mark", "cut", "empty", "header only", "noise", "carriage returns"]
SOUND = ["numbers", "large numbers", "names", "names by case", "words for nothing", "truths"]
TABLE_FAULTS = ["no label", "no text", "label twice", "blank in the header", "more columns"]
MODELS = ["bert", "roberta", "bart"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> dict[str, str]:
    """Folders with three tiny models, of which two number positions or read ends in their way."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0}
    roberta = RobertaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        **sizes,
    )
    RobertaModel(roberta).save_pretrained(root / "roberta")
    bart = BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        **sizes,
    )
    BartModel(bart).save_pretrained(root / "bart")
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "[SEP]"
    for name in ("roberta", "bart"):
        tokenizer.save_pretrained(root / name)
    return {"bert": model_dir, "roberta": str(root / "roberta"), "bart": str(root / "bart")}


def as_bytes(rows: list[Row], suffix: str) -> bytes:
    """Returns a table in the format that the suffix names."""
    if suffix == "parquet":
        buffer = io.BytesIO()
        Dataset.from_list(rows).to_parquet(buffer)
        return buffer.getvalue()
    if suffix == "json":
        return json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if suffix == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if suffix == "tsv" else ",")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode()


def damaged(content: bytes, fault: str | None, draw: st.DrawFn) -> bytes:
    """Returns the bytes with one fault."""
    if fault in ("latin-1", "utf-16"):
        text = content.decode("utf-8", "replace")
        return text.encode(fault, "replace")
    if fault == "mark":
        return b"\xef\xbb\xbf" + content
    if fault == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if fault == "noise":
        place = draw(st.integers(0, len(content)))
        return content[:place] + draw(st.binary(min_size=1, max_size=3)) + content[place:]
    if fault == "carriage returns":
        return content.replace(b"\n", b"\r")
    whole = {"empty": b"", "header only": content.split(b"\n")[0] + b"\n"}
    return whole.get(fault or "", content)


def spoilt(rows: list[Row], fault: str | None) -> list[Row]:
    """Returns the rows with one fault of the table."""
    if fault == "no label":
        return [{"text": row["text"]} for row in rows]
    if fault == "no text":
        return [{"label": row["label"]} for row in rows]
    if fault == "label twice":
        return [row | {"label ": 1} for row in rows]
    if fault == "blank in the header":
        return [{" text": row["text"], "label": row["label"]} for row in rows]
    if fault == "more columns":
        return [{"id": n} | row | {"note": None} for n, row in enumerate(rows)]
    return rows


def mostly(usual: object, others: list[Any]) -> st.SearchStrategy[Any]:
    """Returns the usual value three times of four."""
    return st.integers(0, 3).flatmap(
        lambda n: st.sampled_from(others) if n == 3 else st.just(usual)
    )


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes, set[str] | None]:
    """Returns a suffix, the bytes of a table, and its classes where it has no fault."""
    suffix = draw(st.sampled_from(["csv", "tsv", "json", "jsonl", "parquet"]))
    kind = draw(st.sampled_from(SOUND) | st.sampled_from(sorted(LABELS)))
    labels = [LABELS[kind][n % len(LABELS[kind])] for n in range(ROWS)]
    texts = draw(st.just(["the cat"]) | st.lists(st.sampled_from(TEXTS), max_size=2))
    words = [texts[n] if n < len(texts) else f"the {WORDS[n]}" for n in range(ROWS)]
    rows = [{"text": text, "label": label} for text, label in zip(words, labels, strict=True)]
    of_table = draw(mostly(None, TABLE_FAULTS))
    of_bytes = draw(mostly(None, BYTES))
    try:
        content = as_bytes(spoilt(rows, of_table), suffix)
    except (ValueError, TypeError, OSError):  # parquet cannot hold what is of several kinds
        content = b""
    sound = of_table in (None, "more columns") and of_bytes in (None, "mark")
    classes = {str(label) for label in labels} if sound else None
    return suffix, damaged(content, of_bytes, draw), classes


CHOICES = st.fixed_dictionaries({
    "task_name": mostly(None, ["sst2", "stsb"]),
    "problem_type": mostly(None, list(PROBLEMS)),
    "pad_to_max_length": st.booleans(),
    "max_seq_length": mostly(16, [2, 3, 128]),
})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(table=tables(), model=st.sampled_from(MODELS), choices=CHOICES, evaluates=st.booleans())
def test_a_run_trains_or_refuses_in_one_line(
    table: tuple[str, bytes, set[str] | None],
    model: str,
    choices: dict[str, Any],
    evaluates: bool,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suffix, content, classes = table
    if choices["task_name"] is not None:
        choices = choices | {"problem_type": None}
        content = content.replace(b"text", b"sentence") if suffix != "parquet" else content
    path, out = tmp_path / f"table.{suffix}", tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    path.write_bytes(content)
    values = {
        "model_name_or_path": models[model],
        "output_dir": out,
        "train_file": path,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "cache_dir": tmp_path / "cache",
    } | {name: value for name, value in choices.items() if value is not None}
    words = ["--do_train", "--use_cpu", "--disable_tqdm=true", "--dataloader_pin_memory=false"]
    words += [f"--{name}={value}" for name, value in values.items()]
    if evaluates:
        words += ["--do_eval", "--do_predict", f"--validation_file={path}", f"--test_file={path}"]
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *words])
    capsys.readouterr()
    try:
        command_line(lambda: main(words), "run_glue.py")
    except SystemExit as ended:
        assert ended.code == 2
        said = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("run_glue.py:")
        ]
        assert len(said) == 1
        assert re.search(r"table\.|--[a-z]", said[0]), said[0]
        assert "Traceback" not in said[0]
        return
    config = json.loads((out / "config.json").read_text())
    if config["problem_type"] == "single_label_classification" and classes is not None:
        if choices["task_name"] is None:
            assert set(config["id2label"].values()) in (classes, {_whole(c) for c in classes})


def _whole(name: str) -> str:
    """Returns the name of a class as a table of scores writes it: 3.0 is the class 3."""
    return name.removesuffix(".0")
