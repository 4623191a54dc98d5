# SPDX-License-Identifier: Apache-2.0
"""Where to perturb: which trainable parameters, by kind of layer or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from .base import nearest

KINDS = ("all", "norm", "no_norm", "no_embeddings")


def kinds_of(model: nn.Module) -> tuple[set[int], set[int]]:
    """Return the ids of the parameters of normalisation layers, and of embeddings."""
    norm: set[int] = set()
    embedding: set[int] = set()
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if "norm" in type(module).__name__.lower():
            norm |= own
        if isinstance(module, nn.Embedding) or "embedding" in type(module).__name__.lower():
            embedding |= own
    return norm, embedding


def choose(
    patterns: Sequence[str], params: Sequence[Tensor], names: Sequence[str], model: nn.Module
) -> list[bool]:
    """Return per parameter whether it is perturbed.

    A parameter is chosen if any positive pattern (`all`, `norm`, a regular expression searched in
    its name) matches, or if there is none, and no negative one (`no_norm`, `no_embeddings`) does.

    Args:
        patterns: the user's `sam_where`.
        params: the P parameters of the optimizer.
        names: their names.
        model: tells normalisation layers and embeddings.

    Raises:
        ValueError: a pattern is no regular expression, or matches no trainable parameter.
    """
    norm, embedding = kinds_of(model)
    trainable = [p.requires_grad for p in params]

    def matches(pattern: str) -> list[bool]:
        if pattern == "all":
            return list(trainable)
        if pattern in ("norm", "no_norm"):
            return [id(p) in norm for p in params]
        if pattern == "no_embeddings":
            return [id(p) in embedding for p in params]
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"sam_where={pattern!r} is neither one of {', '.join(KINDS)} nor a regular "
                f"expression: {error}"
            ) from None
        return [expression.search(name) is not None for name in names]

    hits = {pattern: matches(pattern) for pattern in patterns}
    for pattern, hit in hits.items():
        if not pattern.startswith("no_") and not any(
            h and t for h, t in zip(hit, trainable, strict=True)
        ):
            some = ", ".join(n for n, t in zip(names, trainable, strict=True) if t)[:300]
            raise ValueError(
                f"sam_where={pattern!r} matches no trainable parameter{nearest(pattern, KINDS)}; "
                f"give one of {', '.join(KINDS)} or a regular expression for names such as: {some}"
            )
    negative = [hit for pattern, hit in hits.items() if pattern in ("no_norm", "no_embeddings")]
    positive = [
        hit for pattern, hit in hits.items() if pattern not in ("no_norm", "no_embeddings")
    ] or [trainable]
    chosen = [
        any(hit[i] for hit in positive) and not any(hit[i] for hit in negative)
        for i in range(len(params))
    ]
    if not any(c and t for c, t in zip(chosen, trainable, strict=True)):
        raise ValueError(
            f"sam_where={list(patterns)} leaves no trainable parameter to perturb; drop a no_* "
            f"pattern"
        )
    return chosen
