# SPDX-License-Identifier: Apache-2.0
"""The parameters that an optimizer trains, looked at before every update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ..vector import Selection
from .contents import WITH_GRADIENT

logger = logging.getLogger(__name__)

Choose = Callable[[Sequence[Tensor], Sequence[str], nn.Module], Selection]
"""`choose(params, names, model)` returns the trainable parameters that are to be perturbed."""


class Parameters:
    """What an optimizer trains now, and what of it may be perturbed.

    Callbacks add groups to an optimizer, unfreeze layers and freeze others in the middle of a run.

    Args:
        model: the Trainer's.
        read: returns the parameters in the optimizer's order.
        choose: which of them are to be perturbed.

    Attributes:
        params: the optimizer's parameters, in its order.
        names: their names.
        perturbable: those that may be perturbed.
        outside: trainable parameters of the model that the optimizer does not know.
    """

    def __init__(self, model: nn.Module, read: Callable[[], list[Tensor]], choose: Choose) -> None:
        self._model = model
        self._read = read
        self._choose = choose
        self._take_in(read())

    def changes(self) -> list[int | None] | None:
        """Look whether anything changed since the last look, and take it in.

        Returns:
            None if nothing did; otherwise for each parameter the place that it had before, or None
            for a new one.
        """
        params = self._read()
        if self._fingerprint(params) == self._known:
            return None
        before = {id(p): i for i, p in enumerate(self.params)}
        some = any(self.perturbable)
        self._take_in(params)
        if some and not any(self.perturbable):
            logger.warning(
                "Updates are not perturbed from here on: none of the parameters that sam_where "
                "chooses is trainable any more."
            )
        return [before.get(id(p)) for p in params]

    def _take_in(self, params: list[Tensor]) -> None:
        modules = list(self._model.modules())
        self._children = [module._modules.values() for module in modules]
        self._weights = [module._parameters.values() for module in modules]
        names = {id(p): name for name, p in self._model.named_parameters()}
        inside = {id(p) for p in params}
        self.params = params
        self.names = [names.get(id(p), f"optimizer.{i}") for i, p in enumerate(params)]
        self.outside = [
            p for p in self._model.parameters() if p.requires_grad and id(p) not in inside
        ]
        self.perturbable = self._choose(self.params, self.names, self._model)
        self._known = self._fingerprint(params)

    def _fingerprint(self, params: list[Tensor]) -> list[Any]:
        """Return what identifies the parameters, and which of them are trainable.

        The views of the modules' entries are kept: to walk the tree takes ten times as long.
        """
        held = [p for p in chain.from_iterable(self._weights) if p is not None and p.requires_grad]
        children = list(map(id, chain.from_iterable(self._children)))
        trainable = list(map(WITH_GRADIENT, params))
        return [list(map(id, params)), trainable, list(map(id, held)), children]
