#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Make a language model forget some texts, robustly: SAM ascends on the loss of forgetting alone.

python examples/unlearning.py --model_name_or_path Qwen/Qwen2.5-0.5B \
    --forget_file forget.jsonl --retain_file retain.jsonl --gamma 2 \
    --sam sam --sam_rho 0.01 --learning_rate 1e-5 --max_steps 100 --output_dir out

Both files hold one {"text": ...} per line; the shorter one is gone through again. The trainer, and
another one with two losses, are in examples/two_losses.py. Needs pip install hf-sam datasets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from examples.two_losses import Unlearning, pairs
from hf_sam import SAMTrainingArguments


@dataclass
class ScriptArguments:
    """What is to be forgotten, and what is to stay."""

    model_name_or_path: str = field(metadata={"help": "language model, folder or Hub id"})
    forget_file: str = field(metadata={"help": "JSON lines with a text that is to be forgotten"})
    retain_file: str = field(metadata={"help": "JSON lines with a text that is to stay"})
    gamma: float = field(default=1.0, metadata={"help": "weight of what is to stay"})
    max_length: int = field(default=256, metadata={"help": "tokens of a text"})


def main(argv: Sequence[str] | None = None) -> Unlearning:
    """Train, save and return the trainer."""
    parser = HfArgumentParser((ScriptArguments, SAMTrainingArguments))
    script, args = parser.parse_args_into_dataclasses(argv)
    args.remove_unused_columns = False  # an example is a pair of texts
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def read(file: str) -> list[dict[str, Any]]:
        texts = list(load_dataset("json", data_files=file)["train"]["text"])
        given = tokenizer(
            texts, max_length=script.max_length, truncation=True, padding="max_length"
        )
        rows = zip(given["input_ids"], given["attention_mask"], strict=True)
        return [
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)],
            }
            for ids, mask in rows
        ]

    forget, retain = read(script.forget_file), read(script.retain_file)
    count = max(len(forget), len(retain))
    both = zip(islice(cycle(forget), count), islice(cycle(retain), count), strict=True)
    trainer = Unlearning(
        model=AutoModelForCausalLM.from_pretrained(
            script.model_name_or_path, trust_remote_code=False
        ),
        args=args,
        train_dataset=[{"forget": f, "retain": r} for f, r in both],
        data_collator=pairs,
        processing_class=tokenizer,
    )
    trainer.gamma = script.gamma
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
