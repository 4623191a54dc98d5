# SPDX-License-Identifier: Apache-2.0
"""Whether model, tokenizer and texts fit each other is asked before the first update."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorWithPadding,
)

from glue_scripts import fit
from glue_scripts.run_glue import main
from shared_scripts.errors import InputError
from tests.glue.conftest import SPECIAL, WORDS, build_tokenizer, pairs

Flags = Callable[..., list[str]]
VOCABULARY = len(SPECIAL) + len(WORDS)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 34,
    "attention_window": 4,
    "d_model": 16,
    "n_layer": 1,
    "n_head": 2,
    "d_inner": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "n_embd": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}


def tiny(family: str, **fields: object) -> AutoConfig:
    """Returns a small configuration of a family of models, with 34 positions."""
    known = AutoConfig.for_model(family).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return AutoConfig.for_model(family, **sizes, **fields)


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        ("bert", 34),
        ("gpt2", 34),
        ("bart", 34),
        ("nystromformer", 34),
        ("roberta", 32),
        ("xlm-roberta", 32),
        ("camembert", 32),
        ("longformer", 32),
        ("mpnet", 32),
        ("esm", 32),
        ("ibert", 32),
        ("xlnet", None),
    ],
)
def test_the_limit_is_the_longest_text_that_the_model_reads(family: str, limit: int | None) -> None:
    own = {"n_positions": 34} if family == "gpt2" else {}
    model = AutoModelForSequenceClassification.from_config(tiny(family, **own)).eval()
    assert fit.positions(model) == limit
    for length in (limit or 60, *([limit + 1] if limit else [])):
        ids = torch.full((1, length), 5)
        ids[:, -1] = 3
        with torch.no_grad():
            if length == limit or limit is None:
                model(ids, attention_mask=torch.ones_like(ids))
            elif family != "longformer":  # it pads to its window, and may have room by chance
                with pytest.raises((IndexError, RuntimeError)):
                    model(ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(("wanted", "used"), [(16, 16), (32, 32), (34, 32), (500, 32)])
def test_the_length_is_cut_with_a_warning(
    wanted: int, used: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny("roberta"))
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 10**30
    assert fit.max_length(wanted, tokenizer, model, pair=True) == used
    assert (f"{wanted} is more than the model takes: using {used}" in caplog.text) is (
        wanted > used
    )


def test_a_length_that_only_marks_fill() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny("bert"))
    with pytest.raises(InputError, match=r"--max_seq_length 3: 3 tokens leave .* at least 5"):
        fit.max_length(3, build_tokenizer(), model, pair=True)


def check(model: torch.nn.Module, texts: list[str], **fields: object) -> None:
    """Tokenizes the texts and asks whether they fit."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokens = Dataset.from_dict(dict(tokenizer(texts)) | {"labels": [0] * len(texts)})
    fit.check(model, tokens, "t.csv", tokenizer, DataCollatorWithPadding(tokenizer))


def test_what_fits_leaves_the_model_as_it_was() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny("bert")).train()
    state = torch.get_rng_state()
    check(model, ["the cat", "a dog sat on the mat", "the"])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tokenizer_larger_than_the_embedding() -> None:
    config = tiny("bert")
    config.vocab_size = VOCABULARY - 2
    model = AutoModelForSequenceClassification.from_config(config)
    check(model, ["the cat", "a dog"])
    with pytest.raises(
        InputError, match=r"t.csv: row 2: token 'very' has the number 15.* 14 tokens .0 to 13.*name"
    ):
        check(model, ["the cat", "a very bad dog"])
    config.vocab_size, config.pad_token_id = 2, None
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(InputError, match="the model knows only 2 tokens"):
        check(model, ["cat"])


@pytest.mark.parametrize("row", [1, 4])
def test_an_end_token_inside_any_text(row: int) -> None:
    config = tiny("bart")
    config.vocab_size = 24
    model = AutoModelForSequenceClassification.from_config(config)
    texts = ["the cat sat on the road"] * 6
    check(model, texts)
    texts[row] = "a [SEP] b"
    with pytest.raises(InputError, match=rf"t.csv: row {row + 1}: BartFor.*text holds '\[SEP\]'"):
        check(model, texts)
    check(AutoModelForSequenceClassification.from_config(tiny("bert")), texts)


def test_kinds_of_tokens_that_the_model_lacks() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny("bert", type_vocab_size=1))
    tokenizer = build_tokenizer()
    read = dict(tokenizer(["the cat"], ["a dog"]))
    read["token_type_ids"] = [[0, 0, 0, 0, 1, 1, 1]]
    tokens = Dataset.from_dict(read | {"labels": [0]})
    with pytest.raises(InputError, match=r"t.csv: row 1: Bert.*cannot read it .*--tokenizer_name"):
        fit.check(model, tokens, "t.csv", tokenizer, DataCollatorWithPadding(tokenizer))


def test_a_text_without_tokens() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny("bert"))
    tokens = Dataset.from_dict({"input_ids": [[5], []], "attention_mask": [[1], []]})
    with pytest.raises(InputError, match=r"t.csv: row 2: gives no token"):
        fit.check(model, tokens, "t.csv", build_tokenizer(), DataCollatorWithPadding)


def saved(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def small_bert(**fields: object) -> BertConfig:
    sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
    return BertConfig(**sizes, num_attention_heads=2, intermediate_size=16, **fields)


def test_a_head_of_another_size_says_both(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    names = {"id2label": {0: "yes", 1: "no", 2: "maybe"}}
    model = saved(tmp_path / "m", BertForSequenceClassification(small_bert(**names)))
    words = flags("--do_eval", task_name="mrpc", data_dir=glue_dir, model_name_or_path=model)
    with pytest.raises(
        InputError,
        match=r"its head has 3 outputs .yes, no, maybe., the task wants 2 .not_equivalent, "
        r"equivalent.*--ignore_mismatched_sizes",
    ):
        main(words)
    assert "eval_accuracy" in main([*words, "--ignore_mismatched_sizes"])


def test_a_head_of_another_kind_is_said(
    flags: Flags, glue_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved(tmp_path / "m", BertForTokenClassification(small_bert()))
    main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir, model_name_or_path=model))
    assert "The checkpoint is a BertForTokenClassification" in caplog.text


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "no configuration"),
        ("model.safetensors", "no model for sequence classification"),
        ("tokenizer.json", "no tokenizer: .*--tokenizer_name"),
    ],
)
def test_files_of_a_model_that_are_cut_short(
    flags: Flags, glue_dir: Path, tmp_path: Path, broken: str, message: str
) -> None:
    model = saved(tmp_path / "m", AutoModel.from_config(small_bert()))
    path = model / broken
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    words = flags("--do_eval", task_name="mrpc", data_dir=glue_dir, model_name_or_path=model)
    with pytest.raises(InputError, match=f"--model_name_or_path {model}: {message}"):
        main(words)


def test_a_model_that_is_no_text_classifier(flags: Flags, glue_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    build_tokenizer().save_pretrained(tmp_path / "m")
    own = {"model_name_or_path": tmp_path / "m"}
    with pytest.raises(InputError, match="no model for sequence classification: Unrec.*ViTConfig"):
        main(flags("--do_eval", task_name="mrpc", data_dir=glue_dir, **own))


def test_the_file_and_row_of_a_text_that_does_not_fit(
    flags: Flags, tmp_path: Path, model_dir: str
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    columns = pairs(6)
    columns["sentence2"][4] = "the zebra sat"
    Dataset.from_dict(columns).to_json(tmp_path / "t.jsonl")
    own = {"train_file": tmp_path / "t.jsonl", "tokenizer_name": tmp_path / "tokenizer"}
    with pytest.raises(InputError, match=r"t.jsonl: row 5: token 'zebra' has the number 16"):
        main(flags("--do_train", **own))
    assert not (tmp_path / "out").exists()
