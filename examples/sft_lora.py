#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune a language model, or a LoRA adapter of it, on instructions with TRL and SAM.

python examples/sft_lora.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name trl-lib/Capybara \
    --use_peft --lora_r 8 --learning_rate 2e-4 --sam sam --sam_rho 0.01 --output_dir out

All arguments of TRL's SFT script, and the sam_* fields. A folder with train.jsonl will do.
Needs pip install 'hf-sam[trl,peft]'.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import load_dataset
from trl import (
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
)

from hf_sam import SAMArguments, SAMMixin


class SAMSFTTrainer(SAMMixin, SFTTrainer):
    """TRL's trainer for instructions, with SAM."""


class SAMSFTConfig(SAMArguments, SFTConfig):
    """Its arguments, with the sam_* fields."""


def main(argv: Sequence[str] | None = None) -> SAMSFTTrainer:
    """Train, save and return the trainer."""
    parser = TrlParser((ScriptArguments, SAMSFTConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config(argv)
    data = load_dataset(script.dataset_name, script.dataset_config)
    trainer = SAMSFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=data[script.dataset_train_split],
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
