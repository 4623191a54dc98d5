# SPDX-License-Identifier: Apache-2.0
"""The text of `--methods`: what it means, and what is refused."""

from __future__ import annotations

import pytest

from hf_sam.compare.rows import parse_rows


def test_commas_separate_methods_and_options() -> None:
    none, sam, looksam = parse_rows(
        "none, sam:rho=lr:0.01,when=after:0.7,ascent_fraction=0.25,looksam"
    )
    assert none.arguments == {"sam": "none"}
    assert sam.arguments == {
        "sam": "sam",
        "sam_rho": "lr:0.01",
        "sam_when": "after:0.7",
        "sam_options": "ascent_fraction=0.25",
    }
    assert sam.text == "sam:rho=lr:0.01,when=after:0.7,ascent_fraction=0.25" == sam.name
    assert looksam.text == "looksam"


def test_several_options_of_a_method() -> None:
    row = parse_rows("none,looksam:k=10,alpha=0.5,sam_rho=0.1")[1]
    assert row.arguments == {"sam": "looksam", "sam_rho": "0.1", "sam_options": "k=10,alpha=0.5"}


def test_other_arguments_make_a_row_of_their_own_setting() -> None:
    rows = parse_rows(
        "none,none:lr_scheduler_type=cosine,sam:rho=0.01,lr_scheduler_type=cosine,"
        "none:--use_peft=true,sam:--use_peft=true"
    )
    assert [row.others for row in rows] == [
        {},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine"},
        {"use_peft": "true"},
        {"use_peft": "true"},
    ]
    assert [row.name for row in rows] == ["none", "none", "sam:rho=0.01", "none", "sam"]


def test_rivals_are_compared_with_none_as_methods_are() -> None:
    """Unless a method has the same other arguments: then it is what that one is compared with."""
    text = "none,none:ema=0.99,none:num_train_epochs=3,none:bf16=true,sam:bf16=true,sam:ema=0.9"
    none, ema, fewer, half, sam, averaged = parse_rows(text)
    assert [row.name for row in (none, ema, fewer)] == [
        "none",
        "none:ema=0.99",
        "none:num_train_epochs=3",
    ]
    assert ema.setting == fewer.setting == averaged.setting == {}
    assert fewer.arguments == {"sam": "none", "num_train_epochs": "3"}
    assert ema.arguments == {"sam": "none"} and ema.ema == "0.99"
    assert (half.name, half.setting) == ("none", {"bf16": "true"})
    assert (sam.name, sam.setting) == ("sam", {"bf16": "true"})
    assert (averaged.name, averaged.ema) == ("sam:ema=0.9", "0.9")
    assert parse_rows("none:bf16=true,sam:bf16=true")[0].rival is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none,none:ema=1.5", "ema=1.5 is not between 0 and 1"),
        ("none:ema=0.9,sam", "add 'none'"),
        ("none,lookasm", "'lookasm' is not a method; .*did you mean 'looksam'"),
        ("none,sam:roh=0.1", "'sam' has no option 'roh'; .*did you mean 'rho'"),
        ("none,sam:rho=-1", "sam:rho=-1: "),
        ("none,sam:rho=wide", "sam_rho"),
        ("none,sam:when=later:0.5", "sam_when"),
        ("none,looksam:k=0", "looksam:k=0: "),
        ("rho=0.1,none", "'rho=0.1' is not an option of a method"),
        ("none,sam:rho", "'rho' is not an option of a method"),
        ("none,sam,sam", "'sam' is there twice"),
        ("sam", "add 'none'"),
        ("none,sam:learning_rate=1", "add 'none:learning_rate=1'"),
        ("none,sam:seed=3", "'seed' of .* is set by the comparison"),
        ("none,sam:--output_dir=x", "is set by the comparison"),
        ("none,sam:sam=asam", "is set by the comparison"),
        ("none,sam:load_best_model_at_end=true", "is set by the comparison"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rows(text)
