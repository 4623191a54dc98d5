#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Train an encoder-decoder to summarise with Seq2SeqTrainer and SAM.

python examples/summarization.py --model_name_or_path google-t5/t5-small \
    --dataset_name EdinburghNLP/xsum --text_column document --summary_column summary \
    --sam sam --sam_rho 0.01 --predict_with_generate --output_dir out

A folder with train.jsonl (and validation.jsonl, which is then evaluated) is a dataset, too.
Needs pip install hf-sam datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_sam import SAMArguments, SAMMixin


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    model_name_or_path: str = field(metadata={"help": "encoder-decoder, folder or Hub id"})
    dataset_name: str = field(metadata={"help": "texts and summaries, folder or Hub id"})
    text_column: str = field(default="document", metadata={"help": "column of the texts"})
    summary_column: str = field(default="summary", metadata={"help": "column of the summaries"})
    max_source_length: int = field(default=512, metadata={"help": "tokens of a text"})
    max_target_length: int = field(default=64, metadata={"help": "tokens of a summary"})


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """transformers' trainer for encoder-decoders, with SAM."""


class SAMSeq2SeqArguments(SAMArguments, Seq2SeqTrainingArguments):
    """Its arguments, with the sam_* fields."""


def main(argv: Sequence[str] | None = None) -> SAMSeq2SeqTrainer:
    """Train, save, evaluate where there is a validation split, and return the trainer."""
    parser = HfArgumentParser((ScriptArguments, SAMSeq2SeqArguments))
    script, args = parser.parse_args_into_dataclasses(argv)
    tokenizer = AutoTokenizer.from_pretrained(script.model_name_or_path, trust_remote_code=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        script.model_name_or_path, trust_remote_code=False
    )
    data = load_dataset(script.dataset_name)

    def tokens(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts, summaries = rows[script.text_column], rows[script.summary_column]
        given = tokenizer(texts, max_length=script.max_source_length, truncation=True)
        wanted = tokenizer(
            text_target=summaries, max_length=script.max_target_length, truncation=True
        )
        return {**given, "labels": wanted["input_ids"]}

    data = data.map(tokens, batched=True, remove_columns=data["train"].column_names)
    trainer = SAMSeq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    if "validation" in data:
        trainer.log_metrics("eval", trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main()
