# SPDX-License-Identifier: Apache-2.0
"""Checks of the Trainer class that the mixin is combined with."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, NoReturn

from torch import nn
from transformers import Trainer

from .contexts import attribute

GIVEN = frozenset(inspect.signature(Trainer.__init__).parameters)
"""The names of a Trainer's arguments; its other attributes may be records of its work."""

REMEDY = (
    "every pass of an update must see the same data, whatever the weights: generate or transform "
    "it in the data set, the collator or get_train_dataloader, or train without SAM"
)


def check_host(kind: type) -> None:
    """Refuse a class whose passes do not compute the loss of the data that they are given.

    Raises:
        NotImplementedError: the class overrides `training_step` without calling
            `super().training_step`, or makes the data within a pass.
    """
    for cls in _others(kind, "training_step"):
        if not _calls_on(vars(cls)["training_step"], "training_step"):
            _refuse(
                f"{cls.__name__}.training_step does not call super().training_step, so its loss "
                "comes from somewhere else"
            )
    for cls in _others(kind, "_prepare_inputs"):
        _refuse(
            f"{cls.__name__}._prepare_inputs makes the data within a pass, as trainers do that "
            "generate with the model"
        )


def check_averaged(names: Sequence[str], inside: Collection[str], processes: int) -> None:
    """Refuse parameters that each of several processes would train by itself.

    DDP averages the gradients of the model alone. Parameters that a loss owns beside the model
    drift apart, and so does all that a method computes from the gradients together, such as the
    length of a perturbation.

    Args:
        names: the names of the optimizer's parameters.
        inside: the names of the model's parameters.
        processes: the number of processes.

    Raises:
        NotImplementedError: there are such parameters; the message gives their number and what to
            do instead.
    """
    outside = [name for name in names if name not in inside]
    if processes > 1 and outside:
        raise NotImplementedError(
            f"hf_sam does not support {processes} processes if the optimizer has parameters "
            f"outside the model ({len(outside)} of {len(names)}, such as those of a loss module): "
            "nobody averages their gradients over ranks; make them part of the model, or use one "
            "process"
        )


@contextmanager
def forbid_forward(trainer: Any) -> Iterator[None]:
    """Raise a NotImplementedError if the model runs before the trainer's `compute_loss`.

    A `training_step` that runs the model before it computes the loss makes data that depend on the
    weights.
    """

    def refuse(*_: Any) -> NoReturn:
        _refuse(
            f"{type(trainer).__name__}.training_step runs the model before compute_loss, as "
            "trainers do that generate with it"
        )

    guard, compute_loss = trainer.model.register_forward_pre_hook(refuse), trainer.compute_loss

    def allowing(*args: Any, **kwargs: Any) -> Any:
        guard.remove()
        return compute_loss(*args, **kwargs)

    try:
        # On the object, as a class in front of the mixin may never call the mixin's compute_loss.
        with attribute(trainer, "compute_loss", allowing):
            yield
    finally:
        guard.remove()


def check_trainable(model: nn.Module) -> None:
    """Refuse a model without a trainable parameter.

    Raises:
        ValueError: there is none.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "model has no trainable parameter: unfreeze some (requires_grad_), or add an adapter"
        )


def base_overrides_step(kind: type, mixin: type) -> bool:
    """Return whether a class after the mixin overrides `training_step`."""
    bases = kind.__mro__[kind.__mro__.index(mixin) :]
    return any(cls in bases for cls in _others(kind, "training_step"))


def refuse_step_in_front(kind: type, mixin: type, what: str) -> NoReturn:
    """Refuse a class that wraps the mixin's `training_step` in a way that changes the update.

    Args:
        kind: the trainer's class.
        mixin: SAMMixin.
        what: a description of what the class's step does, for the message.

    Raises:
        NotImplementedError: always; the message names the class and the order of bases that works.
    """
    before = kind.__mro__[: kind.__mro__.index(mixin)]
    name = next((c.__name__ for c in before if "training_step" in vars(c)), kind.__name__)
    raise NotImplementedError(
        f"{name}.training_step {what}, but the work of an update is done with its last micro-batch "
        f"only: derive {name} from Trainer, and put the mixin in front of it, class "
        f"SAM{name}(SAMMixin, {name}): then its step is run in every pass"
    )


def _refuse(reason: str) -> NoReturn:
    raise NotImplementedError(f"hf_sam does not support this trainer: {reason}; {REMEDY}")


def _others(kind: type, method: str) -> Iterator[type]:
    """Yield the classes that define a method, except Trainer and those of this package."""
    for cls in kind.__mro__:
        if cls is not Trainer and method in vars(cls) and not cls.__module__.startswith("hf_sam."):
            yield cls


def _calls_on(function: Any, name: str) -> bool:
    """Return whether a function's code mentions an attribute; true if there is no code to read."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or _mentions(code, name)


def _mentions(code: CodeType, name: str) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return name in code.co_names or any(_mentions(c, name) for c in inner)
