# SPDX-License-Identifier: Apache-2.0
"""The model card: what it says of the method is what was trained and measured."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml

import hf_sam
from benchmarks import machine, tables
from hf_sam import METHODS
from hf_sam.host.card import MEASURED, add_section
from tests.test_trainer_features import build


def card_of(tmp_path: Path, **arguments: Any) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card after a training."""
    trainer = build(tmp_path, arguments={"max_steps": 4, "logging_steps": 2} | arguments)
    trainer.train()
    trainer.create_model_card(tags=["mine"])
    _, data, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(data), text


def test_a_model_card_describes_the_method(tmp_path: Path) -> None:
    """Paper, options, cost, what was measured here and elsewhere, versions, how to cite."""
    data, text = card_of(tmp_path, sam="friendly_sam", sam_rho=0.3, sam_track_memory=True)
    assert {"mine", "hf_sam", "friendly_sam"} <= set(data["tags"])
    kind = METHODS["friendly_sam"]
    assert inspect.getdoc(kind).splitlines()[0] in text
    assert text.count("https://arxiv.org/abs/2403.12350") == 2
    assert f"Passes per update: {kind.passes} (the" in text
    assert f"in copies of the trained weights: {kind.memory}." in text
    known = json.loads(MEASURED.read_text())
    assert f"{known['methods']['friendly_sam']['time']} times the seconds per update" in text
    assert known["setting"]["where"] in text
    assert "Updates that were perturbed: 100% of those logged." in text
    assert re.search(r"up to update 2, \S+ up to update 4\.", text)
    assert re.search(r"Peak memory of the training: \d+ MB", text)
    config = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert config["sam"] == "friendly_sam" and config["method"]["rho"] == 0.3
    assert "@software{hf_sam," in text and f"version = {{{hf_sam.__version__}}}" in text


def test_a_model_card_says_only_what_is_known(tmp_path: Path) -> None:
    """Without a training; and of a method that has no row in METHODS."""
    trainer = build(tmp_path, arguments={"sam": "asam", "max_steps": 1, "logging_steps": 9})
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert not re.search("Sharpness in training|Peak memory|that were perturbed|None", text)
    add_section(tmp_path, "1", type("Mine", (), {"__doc__": "Of my own."}), {"sam": "Mine"}, [])
    own = (tmp_path / "README.md").read_text().removeprefix(text)
    assert "method `Mine`. Of my own." in own
    assert not re.search("arXiv|Passes|Measured|None", own)


def test_cards_repeat_what_was_measured() -> None:
    found = tables.measured(machine.read(machine.RESULTS / f"{tables.SHOWN}.json"))
    assert MEASURED.read_text() == found, "run: python -m benchmarks.tables"


def test_the_card_of_a_plain_fine_tune_does_not_claim_sam(tmp_path: Path) -> None:
    trainer = build(tmp_path, arguments={"sam": "none", "max_steps": 1})
    trainer.train()
    trainer.create_model_card()
    assert "sharpness-aware" not in (tmp_path / "README.md").read_text().lower()
