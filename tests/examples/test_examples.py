# SPDX-License-Identifier: Apache-2.0
"""The scripts in examples/: each trains a tiny model from files, offline."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel, set_seed

from hf_sam import SAMTrainer, SAMTrainingArguments
from tests.toys import bert, llama, t5, tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMON = [
    "--max_steps=2",
    "--save_strategy=no",
    "--report_to=none",
    "--use_cpu",
    "--disable_tqdm=1",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # the names of foreign configs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # for pickle
    spec.loader.exec_module(module)
    return module


def model_folder(folder: Path, model: torch.nn.Module) -> str:
    """A folder with a model and a tokenizer of words w0 to w46."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def words(start: int, count: int = 4) -> str:
    return " ".join(f"w{(start + i) % 47}" for i in range(count))


def lines(folder: Path, rows: list[dict[str, Any]], split: str = "train") -> str:
    """A folder that is a dataset, with one file of JSON lines."""
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def trained(trainer: Any, out: Path) -> None:
    """The run perturbed every update, and left its model."""
    (entry,) = [e for e in trainer.state.log_history if "sam/perturbation_norm" in e][-1:]
    assert entry["sam/share_perturbed_updates"] == 1
    assert entry["sam/perturbation_norm"] == pytest.approx(0.01, rel=1e-3)
    assert list(out.glob("*.safetensors")) + list(out.glob("0_*/*.safetensors"))


def test_sft_lora(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs TRL: pip install 'hf-sam[trl]'")
    pytest.importorskip("peft", reason="needs PEFT: pip install 'hf-sam[peft]'")
    data = lines(tmp_path / "data", [{"text": words(i, 6)} for i in range(16)])
    out = tmp_path / "out"
    given = [f"--model_name_or_path={model_folder(tmp_path / 'llama', llama())}", *COMMON]
    given += [f"--dataset_name={data}", f"--output_dir={out}", "--logging_steps=1"]
    given += ["--use_peft", "--lora_r=2", "--bf16=0", "--sam=sam", "--sam_rho=0.01"]
    trainer = example("sft_lora").main(given)
    trained(trainer, out)
    assert all("lora_" in n for n, p in trainer.model.named_parameters() if p.requires_grad)


def test_dpo(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs TRL: pip install 'hf-sam[trl]'")
    rows = [
        {"prompt": words(i), "chosen": words(i + 4), "rejected": words(i + 9)} for i in range(16)
    ]
    data, out = lines(tmp_path / "data", rows), tmp_path / "out"
    given = [f"--model_name_or_path={model_folder(tmp_path / 'llama', llama())}", *COMMON]
    given += [f"--dataset_name={data}", f"--output_dir={out}", "--logging_steps=1", "--bf16=0"]
    first = []
    for sam in ("head_sam", "sam"):
        trainer = example("dpo").main([*given, f"--sam={sam}", "--sam_rho=0.01"])
        trained(trainer, out)
        first.append(trainer.state.log_history[0])
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-5), "by logits, or without"


def test_sentence_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    rows = [{"anchor": words(i), "positive": words(i + 1)} for i in range(32)]
    set_seed(0)
    encoder = model_folder(tmp_path / "bert", BertModel(bert().config))
    data, out = lines(tmp_path / "data", rows), tmp_path / "out"
    given = [f"--model_name_or_path={encoder}", f"--dataset_name={data}", f"--output_dir={out}"]
    given += [*COMMON, "--logging_steps=1", "--sam=sam", "--sam_rho=0.01"]
    trained(example("sentence_embeddings").main(given), out)


def test_summarization(tmp_path: Path) -> None:
    rows = [{"document": words(i, 8), "summary": words(i, 2)} for i in range(16)]
    data, out = lines(tmp_path / "data", rows), tmp_path / "out"
    lines(tmp_path / "data", rows[:4], "validation")
    given = [f"--model_name_or_path={model_folder(tmp_path / 't5', t5())}", f"--output_dir={out}"]
    given += [
        f"--dataset_name={data}",
        *COMMON,
        "--logging_steps=1",
        "--per_device_eval_batch_size=4",
    ]
    given += ["--predict_with_generate", "--sam=sam", "--sam_rho=0.01"]
    trainer = example("summarization").main(given)
    trained(trainer, out)


def test_unlearning(tmp_path: Path) -> None:
    """What is to be forgotten becomes unlikelier, and what is to stay does not."""
    folder, out = model_folder(tmp_path / "llama", llama()), tmp_path / "out"
    given = [f"--model_name_or_path={folder}", f"--output_dir={out}", "--max_length=8", *COMMON]
    for name, start, count in (("forget", 0, 8), ("retain", 20, 5)):
        rows = [{"text": words(start + i % 3)} for i in range(count)]
        file = Path(lines(tmp_path / name, rows)) / "train.jsonl"
        given.append(f"--{name}_file={file}")
    given += ["--logging_steps=1", "--sam=sam", "--sam_rho=0.01", "--gamma=3", "--max_steps=6"]
    trainer = example("unlearning").main([*given, "--learning_rate=0.01"])
    trained(trainer, out)
    losses = [e["sam/ascent_loss"] for e in trainer.state.log_history if "sam/ascent_loss" in e]
    assert losses[-1] < losses[0] - 0.01, "minus the loss of what is to be forgotten"


def test_a_hand_written_loop_is_the_trainer(tmp_path: Path) -> None:
    """The same updates as SAMTrainer makes of the same batches."""
    folder = model_folder(tmp_path / "bert", bert())
    rows = [(words(i), words(i + 3), i % 2) for i in range(12)]
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "label"), *rows])
    loop = example("hand_written_loop")
    given = [f"--model_name_or_path={folder}", f"--train_file={tmp_path / 'pairs.csv'}"]
    given += [f"--output_dir={tmp_path / 'out'}", "--use_cpu", "--epochs=1", "--batch_size=12"]
    ours = loop.main([*given, "--rho=0.05", "--learning_rate=0.01"])
    args = SAMTrainingArguments(
        str(tmp_path / "trainer"),
        sam="sam",
        sam_rho="0.05",
        learning_rate=0.01,
        weight_decay=0.01,  # that of torch's AdamW, which the loop takes as it is
        num_train_epochs=1,
        per_device_train_batch_size=12,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    data = loop.read(str(tmp_path / "pairs.csv"), tokenizer())
    SAMTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer()).train()
    moved = 0
    for (name, p), q in zip(model.named_parameters(), ours.parameters(), strict=True):
        if not name.endswith("bias") and "LayerNorm" not in name:  # Trainer does not decay these
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
            moved += 1
    assert moved > 10
