# SPDX-License-Identifier: Apache-2.0
"""A tiny BERT with its tokenizer on disk, and small GLUE files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "good", "bad", "very"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def sentence(number: int) -> str:
    """Returns one of many short texts."""
    return " ".join(WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 5, 7))


def pairs(count: int, classes: int = 2) -> dict[str, list]:
    """Returns columns of a task in MRPC's form."""
    return {
        "sentence1": [sentence(n) for n in range(count)],
        "sentence2": [sentence(n if n % classes else n + 1) for n in range(count)],
        "label": [n % classes for n in range(count)],
        "idx": list(range(count)),
    }


def build_tokenizer(pad: bool = True) -> PreTrainedTokenizerFast:
    """Returns a word tokenizer, with or without a pad token."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if pad:
        special["pad_token"] = "[PAD]"
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    disable_progress_bars()


def tiny_model(folder: Path) -> None:
    """Write a one-layer BERT of 16 units and its tokenizer."""
    set_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the tiny BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data_dir with MRPC (labelled test set), STS-B, and MNLI without a mismatched set."""
    root = tmp_path_factory.mktemp("glue")
    mnli = pairs(12, classes=3)
    mnli = {"premise": mnli["sentence1"], "hypothesis": mnli["sentence2"], "label": mnli["label"]}
    stsb = pairs(12) | {"label": [(n % 11) / 2 for n in range(12)]}
    unlabelled = {key: values[:6] for key, values in stsb.items()} | {"label": [-1.0] * 6}
    for path, columns in {
        "mrpc/train": pairs(24),
        "mrpc/validation": pairs(10),
        "mrpc/test": pairs(6),
        "mnli/train": mnli,
        "mnli/validation_matched": mnli,
        "stsb/train": stsb,
        "stsb/validation": stsb,
        "stsb/test": unlabelled,
    }.items():
        (root / path).parent.mkdir(exist_ok=True)
        Dataset.from_dict(columns).to_parquet(root / f"{path}.parquet")
    return root


@pytest.fixture
def flags(model_dir: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Function from arguments to a command line for the tiny model, output in `tmp_path / out`."""

    def build(*words: str, **values: object) -> list[str]:
        common: dict[str, object] = {
            "model_name_or_path": model_dir,
            "output_dir": tmp_path / "out",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "max_steps": 2,
            "max_seq_length": 16,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
        }
        named = [f"--{name}={value}" for name, value in (common | values).items()]
        return [*named, *words]

    return build


@pytest.fixture
def results(tmp_path: Path) -> Callable[[str], dict]:
    """Function from a stage to the content of its file of results."""

    def read(stage: str) -> dict:
        return json.loads((tmp_path / "out" / f"{stage}_results.json").read_text())

    return read
