# SPDX-License-Identifier: Apache-2.0
"""A script as users write them: a tiny model, SAMTrainingArguments on its command line."""

import sys
from dataclasses import dataclass

import torch
from transformers import HfArgumentParser
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_sam import SAMTrainer, SAMTrainingArguments


@dataclass
class Own:
    """Arguments of the script's own."""

    width: int = 4
    fail_with: str = ""
    evaluate: bool = True


class Model(torch.nn.Module):
    """Two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(4, width), torch.nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
        logits = self.out(torch.tanh(self.hidden(x)))
        return SequenceClassifierOutput(torch.nn.functional.cross_entropy(logits, labels), logits)


def examples(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return [{"x": row, "labels": (row.sum() > 0).long()} for row in x]


def main() -> None:
    own, args = HfArgumentParser((Own, SAMTrainingArguments)).parse_args_into_dataclasses()
    if own.fail_with and own.fail_with in (args.sam, str(args.seed)):
        sys.exit("out of luck")
    torch.manual_seed(args.seed)
    trainer = SAMTrainer(
        model=Model(own.width),
        args=args,
        train_dataset=examples(32, 0),
        eval_dataset=examples(64, 1),
        compute_metrics=lambda p: {
            "accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())
        },
    )
    trainer.train()
    if own.evaluate:
        trainer.evaluate()
    trainer.save_model()


if __name__ == "__main__":
    sys.exit(main())
