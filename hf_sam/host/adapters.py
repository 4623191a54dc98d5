# SPDX-License-Identifier: Apache-2.0
"""The low-rank adapters of a model, as PEFT attaches them to its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..landscape import Layer, Pair
from ..landscape.layers import LAYERS, chosen
from .parameters import Parameters


class Adapters:
    """The layers with low-rank adapters, which are looked for anew when the parameters change.

    Args:
        model: the Trainer's model.
        known: the parameters that the optimizer trains.
    """

    def __init__(self, model: nn.Module, known: Parameters) -> None:
        self._model, self._known = model, known
        self._params: list[Tensor] | None = None
        self._layers: list[Layer] = []

    def __call__(self) -> list[Layer]:
        """Return the layers; see `layers_of`."""
        if self._known.params is not self._params:
            self._params = self._known.params
            self._layers = layers_of(self._model, self._params)
        return self._layers

    def check(self, name: str, whole: bool) -> None:
        """Refuse a method for low-rank adapters where there are none, or where it would be wrong.

        Args:
            name: the method's name.
            whole: whether the method finds the layers as it needs them, which are whole ones if it
                changes what they compute.

        Raises:
            ValueError: there is no pair of factors to work on.
            NotImplementedError: processes share the layers out, or an adapter is of another kind.
        """
        if not whole:
            raise NotImplementedError(
                f"{name} does not work under FSDP2 and DeepSpeed, whose processes share out the "
                "layers that it computes with: use DDP, sam='bar' or sam='sam'"
            )
        layers = self()
        if not chosen(layers, self._known.perturbable):
            raise ValueError(
                f"{name} works on {LAYERS}, and the optimizer trains no pair of factors"
                f"{' that sam_where chooses' if layers else ''}: add an adapter "
                "(peft.get_peft_model), let sam_where choose both factors, or use sam='sam'"
            )


def layers_of(model: nn.Module, params: Sequence[Tensor]) -> list[Layer]:
    """Return the linear layers with LoRA adapters that are active and trained.

    A pair of factors is left out if one of them is not trained.

    Args:
        model: the Trainer's model.
        params: the optimizer's parameters, to which pairs refer.

    Raises:
        NotImplementedError: a trained adapter is of another kind; the message names it.
    """
    places = {id(p): i for i, p in enumerate(params) if p.requires_grad}
    layers = []
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            pairs = list(_pairs(name, module, places))
            layers += [Layer(name, module.base_layer, pairs)] if pairs else []
    return layers


def _pairs(name: str, module: Any, places: dict[int, int]) -> Iterator[Pair]:
    """Yield the trained pairs of a layer, and refuse adapters of another kind."""
    for adapter in module.active_adapters:
        if not any(id(p) in places for p in _weights(module, adapter)):
            continue
        if not _is_plain(module, adapter):
            kind = type(module.lora_variant.get(adapter) or module).__name__
            raise NotImplementedError(
                f"adapter {adapter!r} on {name} is a {kind.removesuffix('Variant')}, and methods "
                "for LoRA work with plain adapters of linear layers only: leave out use_dora and "
                "other variants in LoraConfig, or use a method for any weights, such as sam='sam'"
            )
        a, b = (factors[adapter].weight for factors in (module.lora_A, module.lora_B))
        if id(a) in places and id(b) in places:
            yield Pair(places[id(a)], places[id(b)], float(module.scaling[adapter]))


def _weights(module: Any, adapter: str) -> Iterator[Tensor]:
    """Yield the weights of an adapter, of whatever kind it is."""
    for name in module.adapter_layer_names:
        one = getattr(module, name)
        if adapter in one:
            weights = one[adapter]
            yield from [weights] if isinstance(weights, Tensor) else weights.parameters()


def _is_plain(module: Any, adapter: str) -> bool:
    """Return whether an adapter adds the product of two matrices to the weight of its base."""
    factors = [both[adapter] for both in (module.lora_A, module.lora_B) if adapter in both]
    if len(factors) < 2 or not all(isinstance(factor, nn.Linear) for factor in factors):
        return False
    # Factors of a parameter inside the base add nothing to what the base returns.
    attends = isinstance(module.base_layer, nn.MultiheadAttention)
    return not (attends or hasattr(module, "parameter_name") or adapter in module.lora_variant)
