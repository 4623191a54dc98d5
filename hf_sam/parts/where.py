# SPDX-License-Identifier: Apache-2.0
"""Selection of the trainable parameters that are perturbed, by kind of layer or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn

from ..vector import Selection
from .base import nearest

KINDS = ("all", "norm", "no_norm", "no_embeddings")


def kinds_of(model: nn.Module) -> tuple[set[int], set[int]]:
    """Return the ids of the parameters of normalisation layers, and those of embeddings."""
    norm: set[int] = set()
    embedding: set[int] = set()
    # By class name, because every model family has norm and embedding classes of its own.
    for module in model.modules():
        own = {id(p) for p in module.parameters(recurse=False)}
        if "norm" in type(module).__name__.lower():
            norm |= own
        if isinstance(module, nn.Embedding) or "embedding" in type(module).__name__.lower():
            embedding |= own
    return norm, embedding


NEGATIVE = ("no_norm", "no_embeddings")


def choose(
    patterns: Sequence[str], params: Sequence[Tensor], names: Sequence[str], model: nn.Module
) -> Selection:
    """Return the trainable parameters that are perturbed.

    A parameter is chosen if a positive pattern matches it, or if there is no positive pattern, and
    if no negative pattern matches it. Positive patterns are `all`, `norm` and regular expressions
    that are searched in its name; negative ones are `no_norm` and `no_embeddings`.

    Args:
        patterns: the user's `sam_where`.
        params: the P parameters of the optimizer.
        names: their names.
        model: the model, whose modules tell normalisation layers and embeddings.

    Raises:
        ValueError: a pattern is no regular expression.
    """
    hits = {pattern: _matches(pattern, params, names, model) for pattern in patterns}
    wanted = [hit for pattern, hit in hits.items() if pattern not in NEGATIVE]
    unwanted = [hit for pattern, hit in hits.items() if pattern in NEGATIVE]
    return Selection(
        p.requires_grad
        and (not wanted or any(hit[i] for hit in wanted))
        and not any(hit[i] for hit in unwanted)
        for i, p in enumerate(params)
    )


def check_patterns(
    patterns: Sequence[str], params: Sequence[Tensor], names: Sequence[str], model: nn.Module
) -> None:
    """Refuse patterns that choose no parameter when training begins.

    Args:
        patterns: the user's `sam_where`.
        params: the P parameters of the optimizer.
        names: their names.
        model: the model, whose modules tell normalisation layers and embeddings.

    Raises:
        ValueError: a pattern matches no trainable parameter, or all patterns together leave none.
    """
    for pattern in patterns:
        if pattern not in NEGATIVE and not any(choose([pattern], params, names, model)):
            some = ", ".join(n for n, p in zip(names, params, strict=True) if p.requires_grad)[:300]
            raise ValueError(
                f"sam_where={pattern!r} matches no trainable parameter{nearest(pattern, KINDS)}; "
                f"give one of {', '.join(KINDS)} or a regular expression for names such as: {some}"
            )
    if not any(choose(patterns, params, names, model)):
        raise ValueError(
            f"sam_where={list(patterns)} leaves no trainable parameter to perturb; drop a no_* "
            "pattern"
        )


def _matches(
    pattern: str, params: Sequence[Tensor], names: Sequence[str], model: nn.Module
) -> list[bool]:
    """Return which parameters a pattern names, whether it includes or excludes them."""
    norm, embedding = kinds_of(model)
    if pattern == "all":
        return [True] * len(params)
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
