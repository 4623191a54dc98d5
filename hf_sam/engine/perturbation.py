# SPDX-License-Identifier: Apache-2.0
"""Stepping aside in weight space and coming back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements moved at a time: what stays in cache, and the bound on scratch memory beside the
largest tensor.
"""


class Perturbation:
    """A context in which `w + eps` stands in the parameters; leaving it restores `w` bitwise,
    whatever happened.

    The tensors of `eps` are consumed: each becomes the snapshot of its parameter, so that stepping
    aside needs no storage beyond `eps` itself. Where `ok` (a `()` bool tensor) is false the
    parameters stay as they are; this needs no host synchronisation. Parameters with a `None` entry
    are never touched.
    """

    def __init__(self, params: Sequence[Tensor], eps: Sequence[Tensor | None], ok: Tensor) -> None:
        self._pairs = [(p, e) for p, e in zip(params, eps, strict=True) if e is not None]
        self._ok = ok
        self._saved: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __enter__(self) -> Perturbation:
        try:
            for pairs in _chunks(self._pairs):
                params, eps = [p for p, _ in pairs], [e for _, e in pairs]
                moved = torch._foreach_add(eps, params)
                torch._foreach_copy_(eps, params)
                self._saved.extend(pairs)
                for param, there in zip(params, moved, strict=True):
                    torch.where(self._ok.to(param.device), there, param, out=param)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @torch.no_grad()
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pairs in _chunks(self._saved):
            torch._foreach_copy_([p for p, _ in pairs], [saved for _, saved in pairs])
        self._saved = []

    @torch.no_grad()
    def displacement_dot(
        self, vector: Sequence[Tensor | None], params: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return per parameter the `()` inner product of the step taken (as rounded) with
        `vector`'s entry.
        """
        saved = {id(p): s for p, s in self._saved}
        sums: list[Tensor | None] = [None] * len(params)
        for i, (param, entry) in enumerate(zip(params, vector, strict=True)):
            if entry is not None and id(param) in saved:
                wide = torch.promote_types(param.dtype, torch.float32)
                step = (param - saved[id(param)]).flatten().to(wide)
                sums[i] = torch.dot(step, entry.flatten().to(wide))
        return sums


def _chunks(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield runs of pairs of one device and dtype with about `CHUNK` elements, a larger tensor
    alone.
    """
    run: list[tuple[Tensor, Tensor]] = []
    size = 0
    for pair in pairs:
        tensor = pair[0]
        new_kind = bool(run) and (run[0][0].device, run[0][0].dtype) != (
            tensor.device,
            tensor.dtype,
        )
        if run and (new_kind or size + tensor.numel() > CHUNK):
            yield run
            run, size = [], 0
        run.append(pair)
        size += tensor.numel()
    if run:
        yield run
