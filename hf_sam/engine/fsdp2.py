# SPDX-License-Identifier: Apache-2.0
"""The engine for FSDP2, under which each rank holds some rows of every parameter and gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..landscape import Averaging, Replay
from ..vector import Numbers, Placement
from .accelerated import AcceleratedEngine

if TYPE_CHECKING:
    from accelerate import Accelerator


class Rows(Placement):
    """Parameters of which each rank holds some of the rows, or which are replicated.

    Args:
        params: the P parameters; those that are no `DTensor` are replicated.

    Raises:
        NotImplementedError: a parameter is sharded in another way.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        places = [_place(p) for p in params]
        self._device = params[0].device if params else torch.device("cpu")
        self._counts = [first for first, _ in places]
        self._earlier = [earlier for _, earlier in places]

    def sums(self, rows: Numbers) -> Numbers:
        """Return the sums over ranks of numbers that each computed from the rows it holds.

        It is one all-reduce of equal size on all ranks, in which each replica but the first counts
        as zero, and so does a parameter of which a rank has no number.
        """
        device = next((n.device for n in rows if n is not None), self._device)
        sent = torch.zeros(len(rows), dtype=torch.float64, device=device)
        for i, (number, counts) in enumerate(zip(rows, self._counts, strict=True)):
            if number is not None:
                sent[i] = number * counts
        distributed.all_reduce(sent)
        pairs = zip(rows, sent, strict=True)
        return [None if number is None else total for number, total in pairs]

    def before(self, rows: Numbers) -> Numbers:
        """Return the sums of the numbers of the ranks that hold earlier rows."""
        present = [i for i, n in enumerate(rows) if n is not None]
        if not present:
            return rows
        mine = torch.stack([rows[i] for i in present])  # type: ignore[misc]
        everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, mine)
        sums: Numbers = [None] * len(rows)
        for k, i in enumerate(present):
            earlier = [everyone[rank][k] for rank in self._earlier[i]]
            sums[i] = torch.stack(earlier).sum() if earlier else torch.zeros_like(mine[k])
        return sums


def _place(param: Tensor) -> tuple[bool, list[int]]:
    """Return whether this rank's rows count in a sum, and the ranks that hold earlier rows."""
    if not isinstance(param, DTensor):
        return distributed.get_rank() == 0, []
    ranks, mine = param.device_mesh.mesh, param.device_mesh.get_coordinate()
    assert mine is not None, "a rank that takes no part in the model"
    sharded = []
    for dim, placement in enumerate(param.placements):
        if type(placement) is Shard and placement.dim == 0:
            sharded.append(dim)
        elif not isinstance(placement, Replicate):
            raise NotImplementedError(
                f"a parameter of shape {tuple(param.shape)} is placed as {param.placements}; SAM "
                "works on parameters that FSDP2 shards along their first dimension, its default"
            )
    if len(sharded) != 1:
        raise NotImplementedError(
            f"a parameter of shape {tuple(param.shape)} is placed as {param.placements}; SAM works "
            "on parameters that are sharded along one dimension of the device mesh"
        )
    others = [c for dim, c in enumerate(mine) if dim not in sharded]
    row: Any = tuple(slice(c) if dim in sharded else c for dim, c in enumerate(mine))
    # The first replica has the coordinate 0 in every mesh dimension that does not shard.
    return not any(others), ranks[row].tolist()


class ShardedEngine(AcceleratedEngine):
    """The engine under FSDP2, applied by transformers or by accelerate.

    Every backward averages the gradient over ranks and leaves each rank its rows. So a gradient of
    one rank's own does not exist, and neither does a gradient of some parameters only.

    Args:
        accelerator: the Trainer's accelerator.
        model: the model, with FSDP2's modules inside.
        replay: the state that later passes of an update repeat.
    """

    replicated = False

    def __init__(self, accelerator: Accelerator, model: nn.Module, replay: Replay) -> None:
        super().__init__(accelerator, model, replay, whole_backward=True)
        self._placed: list[int] = []
        self._modules = [m for m in model.modules() if isinstance(m, FSDPModule)]
        self._reshard()

    def start(self) -> None:
        """Begin a new update, with every parameter in its sharded form."""
        super().start()
        # A forward that no backward followed leaves the whole parameters in their places.
        self._reshard()

    def params(self, optimizer: Any) -> list[Tensor]:
        """Return the trainable parameters, in the optimizer's order."""
        params = super().params(optimizer)
        # This is called before every update, and the placement is computed once.
        if [id(p) for p in params] != self._placed:
            self._placed, self.placement = [id(p) for p in params], Rows(params)
        return params

    def mine(self, drawn: list[Any]) -> list[Any]:
        """Return all examples, because every rank takes part in the gradient of each of them."""
        return drawn

    def averaging(self, wanted: Averaging, *, to_perturb: bool, partial: bool) -> Averaging:
        """Return that the backward pass averages, as every backward of FSDP2 does."""
        return Averaging.IN_BACKWARD

    @contextmanager
    def no_sync(self, own: bool = False) -> Iterator[None]:
        """Surround a pass whose gradient is not averaged yet."""
        state = self._accelerator.gradient_state
        # If it should never be averaged, all ranks see the same example, and averaging is exact.
        if own or self._every_batch:
            yield
            return
        before = state.sync_gradients
        state._set_sync_gradients(False)  # Trainer's hooks on replicated adapters read it
        self._sync(False)
        try:
            yield
        finally:
            self._sync(True)
            state._set_sync_gradients(before)

    def _sync(self, sync: bool) -> None:
        for module in self._modules:
            module.set_requires_gradient_sync(sync, recurse=False)

    def local(self, tensor: Tensor) -> Tensor:
        """Return this rank's rows of a parameter or gradient, in their own storage."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def like(self, param: Tensor, rows: Tensor) -> Tensor:
        """Return this rank's rows as a gradient that is sharded as the parameter is."""
        if not isinstance(param, DTensor):
            return rows
        place = param.device_mesh, param.placements
        size, stride = param.shape, param.stride()
        return DTensor.from_local(rows, *place, run_check=False, shape=size, stride=stride)

    def rows(self, param: Tensor, whole: Tensor) -> Tensor:
        """Return a copy of this rank's rows of a whole tensor."""
        if not isinstance(param, DTensor):
            return whole
        # FSDP2 gives each rank ceil(rows / ranks) rows, and the last ranks fewer or none.
        dim = next(d for d, p in enumerate(param.placements) if isinstance(p, Shard))
        each = math.ceil(len(whole) / param.device_mesh.size(dim))
        first = min(each * param.device_mesh.get_local_rank(dim), len(whole))
        return whole.narrow(0, first, len(param.to_local())).clone()

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Surround the perturbed weights, and drop gathered copies before and after."""
        self._reshard()  # a copy from an earlier forward would not include the perturbation
        try:
            yield
        finally:
            self._reshard()

    def _reshard(self) -> None:
        for module in self._modules:
            module.reshard()

    def average_gradients_(
        self, params: Sequence[Tensor], grads: list[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the gradients, which every backward has averaged."""
        return grads
