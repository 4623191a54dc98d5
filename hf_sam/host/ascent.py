# SPDX-License-Identifier: Apache-2.0
"""The loss along whose gradient a method ascends, where it is another than the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import Trainer

from .contexts import attribute

REMEDY = (
    "use a method whose update is the descent gradient alone, such as sam='sam', or leave out "
    "compute_ascent_loss and ascent_loss_func"
)


class AscentLoss:
    """The ascent loss of a Trainer: its `compute_ascent_loss`, or a function of outputs and labels.

    Args:
        trainer: the Trainer, whose class may have a method
            `compute_ascent_loss(model, inputs, num_items_in_batch=None)`.
        function: a function `f(outputs, labels, num_items_in_batch=None)`, or None.

    Raises:
        ValueError: there are both.
    """

    def __init__(self, trainer: Any, function: Callable[..., Tensor] | None) -> None:
        self._trainer, self._function = trainer, function
        self._method = getattr(trainer, "compute_ascent_loss", None)
        if self._method is not None and function is not None:
            raise ValueError(
                f"ascent_loss_func is given, and {type(trainer).__name__} has a method "
                "compute_ascent_loss: give one of them"
            )

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self._function is not None or self._method is not None

    def check(self, name: str, *, used: bool) -> None:
        """Refuse a method that does not only perturb along the ascent gradient.

        Args:
            name: the method's name.
            used: whether the method perturbs along such a gradient, and does nothing else with it.

        Raises:
            ValueError: there is an ascent loss, and the method does something else.
        """
        if self.given and not used:
            raise ValueError(
                f"{name} does not ascend along a gradient that it uses for nothing else, so an "
                f"ascent loss of its own has no meaning: {REMEDY}"
            )

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Have the Trainer compute the ascent loss in place of its own."""
        compute = self._by_method if self._function is None else self._by_function
        # On the object, as a class in front of the mixin may have a `compute_loss` of its own.
        with attribute(self._trainer, "compute_loss", compute):
            yield

    def _by_method(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        assert self._method is not None
        loss = self._method(model, inputs, **more)
        return (loss, None) if return_outputs else loss

    def _by_function(self, *args: Any, **more: Any) -> Any:
        with attribute(self._trainer, "compute_loss_func", self._function):
            return Trainer.compute_loss(self._trainer, *args, **more)
