# SPDX-License-Identifier: Apache-2.0
"""Weights that are kept in the host's memory while they are perturbed.

Numpy's memory stands in for the host's, because torch's profiler does not see it; and the policy of
accelerators is forced on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_sam import METHODS, Landscape, Vector
from hf_sam.host.storing import useless
from hf_sam.landscape import snapshot
from hf_sam.methods import rsam
from hf_sam.sweeps import GROUPED, Policy, forced
from tests.cases import CASES, Case
from tests.laws.test_memory import LAYERS, Deep, draw_in_torch, plain_peak, updates
from tests.laws.test_sweeps import shared
from tests.toys import Bowl, assert_equal, train, weights

MOVING = [case for case in CASES if any(case.passes(step, 6) > 1 for step in range(6))]

BESIDE = {"ssam_f": 0.25 + 4 / LAYERS, "ssam_d": 0.25 + 4 / LAYERS, "rsam": 1.0}
"""What is there without the snapshot, in P, where it is not 1 less than what a row says: a mask and
scratch for one tensor; noise and gradient, both of which it takes to step aside.
"""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of each piece of the host's memory that was asked for, under GPUs' policy."""
    asked = []

    def host_like(tensor: Tensor) -> Tensor:
        asked.append(tensor.nbytes)
        memory = torch.from_numpy(np.empty(tensor.nbytes, np.uint8)).view(tensor.dtype)
        return memory.as_strided(tensor.shape, torch.empty_like(tensor).stride())

    monkeypatch.setattr(snapshot, "host_like", host_like)
    with forced(GROUPED):
        yield asked


@pytest.mark.parametrize("case", MOVING, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_same_bits_and_every_weight_returns(case: Case, rounding: str, host: list[int]) -> None:
    found = []
    for offload in ("none", "cpu"):
        bowl = Bowl(torch.float64 if rounding == "nearest" else torch.bfloat16)
        method, more = METHODS[case.key](**case.options), {"rounding": rounding}
        before = [p.detach().clone() for p in bowl.params]
        ats = (bowl.landscape(step, total=6, offload=offload, **more) for step in range(6))
        found.append([list(method(at)) for at in ats])
        assert_equal([p.detach() for p in bowl.params], before)
    assert host, "nothing was kept in the host's memory"
    for one, two in zip(*found, strict=True):
        assert all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", shared())
@pytest.mark.parametrize("fails", [False, True])
def test_exact_return_whatever_the_memory(name: str, fails: bool, host: list[int]) -> None:
    params = [nn.Parameter(t) for t in shared()[name]]
    before = [p.detach().clone() for p in params]
    eps = [torch.randn(p.shape) for p in params]
    at = Landscape(params, [1], lambda batch, share=1.0: torch.zeros(()), offload="cpu")
    try:
        with at.perturbed(Vector(eps)):
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    assert all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("case", MOVING, ids=str)
def test_a_perturbation_takes_a_tenth_of_the_weights(
    case: Case, host: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what a method keeps beside it, such as an average, masks, or the gradient here."""
    monkeypatch.setattr(rsam, "normal", draw_in_torch)
    total = 4 if case.key == "late_sam" else 2
    model, method = Deep(), METHODS[case.key](**case.options)
    with forced(Policy(model.bytes // 64, eager=False)):  # no more scratch than in a large model
        last = updates(method, model, total, 1, offload="cpu")[-1]
    extra = (last - plain_peak(Deep, 1)) / model.bytes
    assert extra <= BESIDE.get(case.key, case.extra_p - 1) + 0.1
    assert sum(host) >= 0.4 * model.bytes


def test_a_cpu_keeps_them_where_they_are() -> None:
    bowl = Bowl()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "host_like", None)
        METHODS["sam"]()(bowl.landscape(offload="cpu"))


def test_unknown_places_are_refused() -> None:
    with pytest.raises(ValueError, match="offload='disk' is not one of none, cpu"):
        Bowl().landscape(offload="disk")


# -- in Trainer -----------------------------------------------------------------------------------


def test_a_cpu_is_told_that_nothing_is_gained(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="hf_sam"):
        offloaded = train(tmp_path, max_steps=2, sam_offload="cpu")
    said = [r.getMessage() for r in caplog.records if "sam_offload" in r.getMessage()]
    assert len(said) == 1 and "in the host's memory anyway" in said[0]
    assert_equal(weights(offloaded), weights(train(tmp_path, max_steps=2)))
    with pytest.raises(ValueError, match="sam_offload='disk' is not one of none, cpu"):
        train(tmp_path, sam_offload="disk")


@pytest.mark.parametrize(
    ("trained", "frozen", "says"),
    [(1, 0, "3.8 MB, 100.0%"), (20, 1000, "76.3 MB, 2.0%"), (20, 20, None), (200, 0, None)],
)
def test_small_models_and_adapters_are_told_so(trained: int, frozen: int, says: str | None) -> None:
    """In millions of weights, on a device that is not the host."""
    model = nn.ParameterList(
        nn.Parameter(torch.empty(n * 1_000_000, device="meta")) for n in (trained, frozen)
    )
    said = list(useless("nearest", "cpu", [model[0]], model))
    assert [says in one for one in said] == ([] if says is None else [True])
    assert not list(useless("nearest", "none", [model[0]], model))


# -- on an accelerator ----------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("key", ["sam", "ssam_d"])
def test_the_snapshot_leaves_the_device(key: str, record_property: Any) -> None:
    """A tenth of the weights at most, the same bits, and the host queues copies of pinned memory;
    what it costs is in the report.
    """
    found, peaks = [], {}
    for offload in ("none", "cpu"):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(2048, 2048, device="cuda")) for _ in range(24)]
        before = [p.detach().clone() for p in params]
        size = sum(p.nbytes for p in params)

        def backward(batch: Tensor, share: Any = 1.0, params: Any = params) -> Tensor:
            loss = sum((p * batch).square().sum() for p in params) * share
            loss.backward()
            return loss.detach()

        method = METHODS[key]()
        for step in range(3):
            at = Landscape(params, [torch.ones(2048, device="cuda")], backward, offload=offload)
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            clocks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            clocks[0].record()
            update = method(at)
            clocks[1].record()
            torch.cuda.synchronize()
            peaks[offload, step] = (torch.cuda.max_memory_allocated() - start) / size
            record_property(f"{offload} ms", clocks[0].elapsed_time(clocks[1]))
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
        found.append([u.cpu() for u in update])
        del update, at
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert peaks["cpu", 2] <= peaks["none", 2] - (1.0 if key == "sam" else 0.25) + 0.1
