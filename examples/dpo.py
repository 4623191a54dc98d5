#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
r"""Learn from preferences with TRL's DPO and SAM on the output head, which costs one pass.

python examples/dpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
    --dataset_name trl-lib/ultrafeedback_binarized --learning_rate 5e-7 \
    --sam head_sam --sam_rho 0.001 --output_dir out

All arguments of TRL's DPO script, and the sam_* fields. A folder with train.jsonl will do.
Needs pip install 'hf-sam[trl,peft]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config
from trl.trainer.utils import FusedCausalLMOutput

from hf_sam import SAMArguments, SAMMixin


class SAMDPOTrainer(SAMMixin, DPOTrainer):
    """TRL's trainer for preferences, with SAM."""

    def take(self, inputs: dict[str, Any], index: torch.Tensor) -> dict[str, Any]:
        """Return the chosen pairs: a batch's first half are the preferred answers.

        Only methods that select examples ask for it (`esam`, `msam`, `ascent_fraction`).
        """
        halves = {key: value.chunk(2) for key, value in inputs.items()}
        return {key: torch.cat([half[index] for half in both]) for key, both in halves.items()}


class SAMDPOConfig(SAMArguments, DPOConfig):
    """Its arguments, with the sam_* fields."""


def unfuse(model: Any) -> None:
    """Let a model make logits where TRL asks for log-probabilities alone.

    TRL multiplies by the head's weight in tiles and never calls the head, in whose call `head_sam`
    perturbs it. The price is the logits' memory.
    """
    forward = model.forward

    def with_logits(
        *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return forward(*args, labels=labels, **kwargs)
        logits, targets = forward(*args, **kwargs).logits[:, :-1].float(), labels[:, 1:]
        every, mask = logits.log_softmax(-1), targets != -100
        own = every.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return FusedCausalLMOutput(
            log_probs=own * mask,
            entropy=-(every.exp() * every).sum(-1),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == targets,
            label_mask=mask,
        )

    model.forward = with_logits


def main(argv: Sequence[str] | None = None) -> SAMDPOTrainer:
    """Train, save and return the trainer."""
    parser = TrlParser((ScriptArguments, SAMDPOConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config(argv)
    data = load_dataset(script.dataset_name, script.dataset_config)
    adapter = get_peft_config(model)
    trainer = SAMDPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=data[script.dataset_train_split],
        peft_config=adapter,
    )
    if args.sam == "head_sam":
        unfuse(trainer.model.get_base_model() if adapter else trainer.model)
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
