# SPDX-License-Identifier: Apache-2.0
"""A share of the training examples, held out to evaluate on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from shared_scripts.errors import InputError


def hold_out(
    classes: Sequence[Hashable], share: float, seed: int, source: str
) -> tuple[list[int], list[int]]:
    """Return the rows to train on, at least one of each class, and those held out, both in order.

    Args:
        classes: the class of each row; the same for all where there are none.
        share: of the rows to hold out.
        seed: of the draw.
        source: where the rows come from, for the message.

    Raises:
        InputError: no row, or more than the classes can spare.
    """
    order = shuffled(len(classes), seed)
    kept = set({classes[row]: row for row in order}.values())
    free, count = [row for row in order if row not in kept], round(share * len(order))
    if not 0 < count <= len(free):
        raise InputError(
            f"--train_val_split {share}: of {len(order)} examples in {source} that is {count}, and "
            f"one of each of {len(kept)} classes has to stay; give another share, or validation "
            "data and no --train_val_split"
        )
    held = set(free[:count])
    return [row for row in range(len(order)) if row not in held], sorted(held)


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in an order that depends on the seed alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def check_share(share: float | None) -> None:
    """Refuse a share that leaves nothing to train or to evaluate on.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if share is not None and not 0 < share < 1:
        raise InputError(f"--train_val_split {share}: must be in (0, 1)")
