#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Train with SAM in a loop of your own: Accelerate, without Trainer.

python examples/hand_written_loop.py --model_name_or_path google-bert/bert-base-uncased \
    --train_file pairs.csv --sam sam --rho 0.01 --epochs 3 --output_dir out
accelerate launch --num_processes 2 examples/hand_written_loop.py ...

The file has the columns sentence1, sentence2 (which may be missing) and label. A method is a short
program over a `Landscape`, the loss of one update's data as a function of the weights; the
optimizer, the schedule and the loop stay yours. Needs pip install 'hf-sam[glue]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)

from hf_sam import METHODS, Landscape, Progress


def main(argv: Sequence[str] | None = None) -> torch.nn.Module:
    """Train, save and return the model."""
    options = parse(argv)
    accelerator = Accelerator(cpu=options.use_cpu)
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path, trust_remote_code=False)
    data = read(options.train_file, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model_name_or_path, num_labels=len(set(data["labels"])), trust_remote_code=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    collate = DataCollatorWithPadding(tokenizer)
    loader = DataLoader(data, options.batch_size, shuffle=True, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    updates = options.epochs * len(loader)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, updates)
    method = METHODS[options.sam](rho=options.rho)
    params = [p for p in model.parameters() if p.requires_grad]

    def backward(batch: dict[str, Any], share: float = 1.0) -> torch.Tensor:
        """Add the gradient of `share` times the batch's loss to `.grad`; return that loss."""
        loss = share * model(**batch).loss
        accelerator.backward(loss)
        return loss.detach()

    step = 0
    for epoch in range(options.epochs):
        model.train()
        for batch in loader:
            rate = schedule.get_last_lr()[0] / options.learning_rate
            progress = Progress(step, updates, lr_ratio=rate)
            at = Landscape(params, [batch], backward, progress=progress, seed=options.seed)
            for p, update in zip(params, method(at), strict=True):
                p.grad = update
            accelerator.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
        accelerator.print(f"epoch {epoch + 1}: loss of the last batch {float(at.mean_loss()):.4f}")
    accelerator.wait_for_everyone()
    model = accelerator.unwrap_model(model)
    model.save_pretrained(options.output_dir, is_main_process=accelerator.is_main_process)
    return model


def read(file: str, tokenizer: Any) -> Any:
    """Return the tokens and labels of a file of texts."""
    data = load_dataset("csv", data_files=file)["train"]

    def tokens(row: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(row["sentence1"], row.get("sentence2"), truncation=True)

    data = data.map(tokens).rename_column("label", "labels")
    return data.select_columns([*tokenizer.model_input_names, "labels"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="SAM in a loop of your own")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--train_file", required=True, help="CSV: sentence1, sentence2, label")
    parser.add_argument("--sam", default="sam", choices=sorted({*METHODS} - {"none"}))
    parser.add_argument("--rho", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--output_dir", default="out")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
