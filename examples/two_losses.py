# SPDX-License-Identifier: Apache-2.0
"""Trainers that ascend along one loss and descend on another.

The weights are perturbed along the gradient of the ascent loss, and the update is the gradient of
the trained loss there. Copy what you need; each is twenty lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import default_data_collator

from hf_sam import SAMTrainer


class Unlearning(SAMTrainer):
    """Forgets some texts so that small changes of the weights do not bring them back.

    Fan et al., ICML 2025, arXiv 2502.05374: the ascent is on the loss of forgetting alone, and the
    update is the gradient of forgetting + gamma retaining at the perturbed weights. Each example
    is a pair {"forget": ..., "retain": ...}; give `data_collator=pairs` to the trainer and
    `remove_unused_columns=False` to its arguments.
    """

    gamma = 1.0

    def compute_ascent_loss(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of forgetting: minus the likelihood loss."""
        return -model(**inputs["forget"]).loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of forgetting plus gamma times the loss of what is to stay."""
        forget = self.compute_ascent_loss(model, inputs)  # first, so that dropout is the ascent's
        outputs = model(**inputs["retain"])
        loss = forget + self.gamma * outputs.loss
        return (loss, outputs) if return_outputs else loss


def pairs(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate both sides of each pair by themselves."""
    return {side: default_data_collator([e[side] for e in examples]) for side in examples[0]}


def class_weighted(weights: list[float]) -> Callable[..., Tensor]:
    """Return a loss in which rare classes weigh more, for classes of very different size.

    `SAMTrainer(..., ascent_loss_func=class_weighted([1.0, 9.0]))` finds the point nearby that is
    worst for the rare class, and trains the usual mean there.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the weighted cross-entropy of a batch."""
        logits = outputs.logits
        return functional.cross_entropy(logits, labels, torch.tensor(weights).to(logits))

    return loss
