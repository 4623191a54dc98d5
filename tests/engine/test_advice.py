# SPDX-License-Identifier: Apache-2.0
"""The warning of a radius that suits weights from scratch, on weights from a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam.host import advice
from tests.toys import bert, lora, make_trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    bert().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    advice._warned.clear()


def warnings(caplog: Any, folder: Path, model: torch.nn.Module, **arguments: Any) -> list[str]:
    """Return what is said of the radius over two runs of a trainer."""
    trainer = make_trainer(folder, built=model, max_steps=1, **arguments)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        trainer.train()
    return [m for m in caplog.messages if "default radius" in m]


def loaded(folder: str) -> torch.nn.Module:
    return type(bert()).from_pretrained(folder)


@pytest.mark.parametrize("key", ["sam", "looksam", "esam"])
def test_it_is_said_once_with_the_number_to_try(
    caplog: Any, tmp_path: Path, saved: str, key: str
) -> None:
    (said,) = warnings(caplog, tmp_path, loaded(saved), sam=key)
    assert said.startswith(f"{key} is at its default radius 0.05")
    assert "sam_rho=0.01 or less" in said


@pytest.mark.parametrize(
    "arguments",
    [
        {"sam": "sam", "sam_rho": "0.05"},
        {"sam": "sam", "sam_rho": "0.01"},
        {"sam": "sam", "sam_rho": "lr:0.05"},
        {"sam": "asam"},
        {"sam": "none"},
    ],
    ids=str,
)
def test_a_given_radius_and_another_unit_are_let_be(
    caplog: Any, tmp_path: Path, saved: str, arguments: dict[str, Any]
) -> None:
    assert warnings(caplog, tmp_path, loaded(saved), **arguments) == []


def test_new_weights_are_let_be(caplog: Any, tmp_path: Path, saved: str) -> None:
    """A model from a configuration knows where that came from, and a LoRA adapter is new."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(saved)
    assert warnings(caplog, tmp_path, type(bert())(config), sam="sam") == []
    assert not advice.from_checkpoint(lora().parameters())


def test_an_adapter_on_loaded_weights_is_new(saved: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = loaded(saved)
    assert advice.from_checkpoint(model.parameters())
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"]))
    assert not advice.from_checkpoint(model.parameters())
