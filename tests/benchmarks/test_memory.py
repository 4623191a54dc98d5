# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.memory import update_peaks
from tests.toys import make_trainer


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
