#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""`make demo`: a small BERT with and without SAM, where a share of the training labels is wrong.

python -m glue_scripts.demo                                    # what `make demo` runs
python -m glue_scripts.demo --methods none sam asam --sam_rho 0.1 --seeds 1 --epochs 8

Paraphrase detection on embedded sentences, so neither data nor a model is downloaded. What is
measured: see shared_scripts/demo.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from shared_scripts import demo  # isort: skip (before torch is loaded)

import numpy as np
import torch
from transformers import DataCollatorWithPadding

from glue_scripts.embedded import (
    NUM_LABELS,
    SENTENCE_COLUMNS,
    Columns,
    make_task,
    texts_of,
    tiny_bert,
    train_tokenizer,
)

TASK = "mrpc"


@dataclass(frozen=True)
class Setting(demo.Setting):
    """What is trained, with AdamW, its learning rate falling linearly to zero.

    Attributes:
        layers: of the BERT.
        width: of its hidden states.
        init_std: of the initial weights. BERT's 0.02 is for a width of 768.
    """

    sam_rho: float = 0.1
    label_noise: float = 0.2
    examples: int = 1000
    validation: int = 500
    epochs: int = 16
    batch: int = 32
    learning_rate: float = 1e-3
    layers: int = 1
    width: int = 64
    init_std: float = 0.1


class Problem(demo.Problem):
    """The data of one seed and its tokenizer."""

    setting: Setting

    def __init__(self, setting: Setting, seed: int) -> None:
        sizes = {"train": setting.examples, "validation": setting.validation, "test": 0}
        splits = make_task(TASK, sizes, seed, setting.label_noise)
        right = make_task(TASK, sizes, seed)["train"]["label"]
        self.setting = setting
        self.seed = seed
        self.tokenizer = train_tokenizer(texts_of(TASK, splits["train"]))
        self.collate = DataCollatorWithPadding(self.tokenizer)
        self.train = self._features(splits["train"])
        self.validation = self._features(splits["validation"])
        wrong = [given != true for given, true in zip(splits["train"]["label"], right, strict=True)]
        self.fixed_wrong = np.array(wrong[: demo.FIXED])

    def _features(self, columns: Columns) -> list[dict[str, Any]]:
        texts = [columns[name] for name in SENTENCE_COLUMNS[TASK]]
        tokens = self.tokenizer(*texts)
        return [
            {**{key: values[row] for key, values in tokens.items()}, "labels": label}
            for row, label in enumerate(columns["label"])
        ]

    def fixed_batches(self, device: torch.device) -> list[dict[str, torch.Tensor]]:
        """Return the first 512 training examples, with the labels that are trained on."""
        fixed = self.train[: demo.FIXED]
        parts = [fixed[start : start + 128] for start in range(0, len(fixed), 128)]
        return [
            {key: value.to(device) for key, value in self.collate(part).items()} for part in parts
        ]

    def options(self) -> dict[str, Any]:
        """Return training arguments beside those that all demos have."""
        return {"per_device_eval_batch_size": 128}

    def parts(self) -> dict[str, Any]:
        """Return what `SAMTrainer` takes beside its arguments, with a new model."""
        setting = self.setting
        model = tiny_bert(
            self.tokenizer,
            NUM_LABELS[TASK],
            seed=self.seed,
            layers=setting.layers,
            width=setting.width,
            init_std=setting.init_std,
        )
        return {
            "model": model,
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": self.collate,
        }


def _heading(setting: Setting) -> str:
    return (
        f"Paraphrase detection: {setting.examples} training pairs, {setting.label_noise:.0%} of "
        f"their labels wrong; a BERT of {setting.layers} layer and width {setting.width}"
    )


DEMO = demo.Demo(
    module="glue_scripts.demo",
    about=str(__doc__),
    setting=Setting(),
    problem=Problem,
    heading=_heading,
    title="A small BERT detects paraphrases",
    folder="demo_output",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    demo.run(DEMO, argv)


if __name__ == "__main__":
    main()
