# SPDX-License-Identifier: Apache-2.0
"""Names of classes: in which order the head has them, and the number of each label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence

import torch

from shared_scripts.arguments import InputError
from vision_scripts.folders import listed
from vision_scripts.part import Part

logger = logging.getLogger(__name__)


def matches(own: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Return which known name each of the own names is: exactly, else without case.

    Without case only where that leaves one name on either side. An own name that is none of the
    known ones is left out.
    """
    exact = set(own) & set(known)
    ours, theirs = (_by_fold(set(names) - exact) for names in (own, known))
    folded = {ours[fold]: theirs[fold] for fold in ours.keys() & theirs.keys()}
    return {name: name for name in exact} | folded


def _by_fold(names: Collection[str]) -> dict[str, str]:
    """Return the names by what they are without case, where that is one name's alone."""
    counts = Counter(name.casefold() for name in names)
    return {name.casefold(): name for name in names if counts[name.casefold()] == 1}


def class_names(parts: dict[str, Part], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes in the order of the model's head.

    Args:
        parts: of all stages.
        known: the classes of a checkpoint's head, LABEL_n where it has no names; empty for a new
            head.

    Raises:
        InputError: there is only one class, or a validation class that training lacks.
    """
    if "train" not in parts:
        return _of_evaluation(parts["validation"], known)
    train = parts["train"]
    if len(train.present) < 2:
        raise InputError(
            f"{train.source}: a classifier needs two classes; all labels are "
            f"{listed(sorted(train.present)) or 'missing'}"
        )
    if absent := [name for name in train.classes if name not in train.present]:
        logger.warning(
            "%s: no image has the classes %s, which it declares", train.source, listed(absent)
        )
    if "validation" in parts:
        _check_validation(parts["validation"], train)
    return _of_training(train.classes, known)


def _check_validation(part: Part, train: Part) -> None:
    found = matches(part.present, train.present)
    for image, label in zip(part.images, part.labels, strict=True):
        name = part.name(label)
        if name is not None and name not in found:
            raise InputError(
                f"{image.name}: no training image has the class {name!r}; there are "
                f"{listed(sorted(train.present))}"
            )


def _of_training(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes as the training images spell them, in the order of a head that fits."""
    spelled = {theirs: own for own, theirs in matches(names, known).items()}
    if len(spelled) == len(names) == len(known):
        return tuple(spelled[name] for name in known)
    if known and not _nameless(known):
        logger.warning(
            "the head of the checkpoint is not of the classes of the training images, and learns "
            "them anew. It has %d: %s. The images have %d: %s",
            *(len(known), listed(known), len(names), listed(names)),
        )
    return names


def _of_evaluation(part: Part, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes of the head, or where it has no names those of the images."""
    if known and (part.present <= set(known) or not _nameless(known)):
        return known
    names = _numbered(part, known)
    logger.warning(
        "the model's head has no names of classes; its outputs are taken in this order: %s",
        listed(names),
    )
    return names


def _numbered(part: Part, known: Sequence[str]) -> tuple[str, ...]:
    """Return the images' classes; if they are numbers, those of all outputs."""
    numbers = tuple(map(str, range(len(known))))
    return numbers if part.names is None and part.present <= set(numbers) else part.classes


def _nameless(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{index}" for index in range(len(names))]


def encode_labels(part: Part, names: tuple[str, ...]) -> torch.Tensor:
    """Return the number of each example's class, `(N,)`.

    Raises:
        InputError: a label that is no class, with its row.
    """
    numbers = {name: number for number, name in enumerate(names)}
    found = matches(part.classes, names)
    encoded = []
    for image, label in zip(part.images, part.labels, strict=True):
        name = part.name(label)
        if name is None or name not in found:
            raise InputError(
                f"{image.name}: label {name or label!r} is outside the {len(names)} classes: "
                f"{listed(names)}"
            )
        encoded.append(numbers[found[name]])
    return torch.tensor(encoded)
