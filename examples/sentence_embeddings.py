#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Train sentence embeddings on pairs with sentence-transformers and SAM.

python examples/sentence_embeddings.py --model_name_or_path microsoft/mpnet-base \
    --dataset_name sentence-transformers/all-nli --dataset_config pair \
    --sam sam --sam_rho 0.01 --output_dir out

The dataset has two columns of texts that belong together; a folder with train.jsonl will do. Other
texts of the batch are the wrong answers, so methods that cut batches are of no use here.
Needs pip install 'hf-sam[sentence-transformers]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import HfArgumentParser

from hf_sam import SAMArguments, SAMMixin


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str = field(metadata={"help": "encoder, folder or Hub id"})
    dataset_name: str = field(metadata={"help": "pairs of texts, folder or Hub id"})
    dataset_config: str | None = field(default=None, metadata={"help": "name of a part of it"})


class SAMSentenceTrainer(SAMMixin, SentenceTransformerTrainer):
    """sentence-transformers' trainer, with SAM."""


class SAMSentenceArguments(SAMArguments, SentenceTransformerTrainingArguments):
    """Its arguments, with the sam_* fields."""


def main(argv: Sequence[str] | None = None) -> SAMSentenceTrainer:
    """Train, save and return the trainer."""
    parser = HfArgumentParser((ScriptArguments, SAMSentenceArguments))
    script, args = parser.parse_args_into_dataclasses(argv)
    model = SentenceTransformer(script.model_name_or_path, device=args.device.type)
    trainer = SAMSentenceTrainer(
        model=model,
        args=args,
        train_dataset=load_dataset(script.dataset_name, script.dataset_config)["train"],
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
