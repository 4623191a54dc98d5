# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.memory import peaks_between, update_peaks
from tests.toys import make_trainer


def test_peaks_between_ends() -> None:
    changes = [(1, 10), (2, 5), (3, -8), (5, 4), (6, -9), (9, 7)]
    # held:     10      15      7       11      2       9
    assert peaks_between(changes, [4, 7, 10]) == [15, 11, 9]
    assert peaks_between(reversed(changes), [4, 7, 10]) == [15, 11, 9]


def test_an_end_without_changes_holds_what_there_was() -> None:
    assert peaks_between([(1, 10), (2, -4)], [3, 4]) == [10, 6]


def broad() -> BertForSequenceClassification:
    """A model whose weights take more memory than what is computed from them."""
    config = BertConfig(
        vocab_size=50, hidden_size=256, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=512,
    )  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.mark.parametrize(("key", "extra"), [("sam", 1), ("friendly_sam", 2)])
def test_snapshot_and_state_are_seen(tmp_path: Path, key: str, extra: float) -> None:
    peaks = {}
    for name in ("none", key):
        small = {"max_steps": 4, "per_device_train_batch_size": 1}
        trainer = make_trainer(tmp_path, sam=name, built=broad(), **small)
        size = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
        found, samples = update_peaks(trainer)
        assert len(found) == len(samples.seconds) == 4
        peaks[name] = max(found[2:]) / size
    assert peaks["none"] >= 3  # gradients, and AdamW's two averages
    assert peaks[key] - peaks["none"] == pytest.approx(extra, abs=0.2)
