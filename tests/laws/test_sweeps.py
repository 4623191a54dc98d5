# SPDX-License-Identifier: Apache-2.0
"""How a device walks over the weights changes nothing, and every weight returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_sam import METHODS, Landscape, Vector, sums, sweeps
from hf_sam.sums import Sums
from hf_sam.sweeps import GROUPED, Policy, Scratch, forced, sweep
from tests.cases import CASES, Case
from tests.laws.conftest import SMALL
from tests.toys import bowl_for


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, "coins"], ids=str)
def test_both_policies_give_the_same_bits(
    case: Case, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "CACHED", SMALL["cached"])
    more = {}
    if dtype == "coins":
        dtype, more = torch.bfloat16, {"rounding": "stochastic"}
    found = []
    for policy in (*SMALL.values(), GROUPED):
        bowl, method = bowl_for(case, dtype), METHODS[case.key](**case.options)
        with forced(policy):
            found.append([list(method(bowl.landscape(step, total=6, **more))) for step in range(6)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def shared() -> dict[str, list[Tensor]]:
    """Return parameters that share memory, or have none of the usual kind, by name."""
    m, n = torch.randn(12, 10), torch.randn(40)
    return {
        "one storage": [m, m.view(-1)],
        "transposed": [m, m.t()],
        "overlapping": [n[:25], n[15:]],
        "interleaved": [m[:, :5], m[:, 5:]],
        "neighbours": [n[:20], n[20:]],
        "expanded": [torch.randn(1, 10).expand(12, 10)],
        "windows": [n.as_strided((20, 3), (1, 1))],
        "not contiguous": [m.t(), torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)],
        "empty and single": [torch.zeros(0), torch.tensor(-0.0), torch.randn(7)],
    }


@pytest.mark.usefixtures("walk")
@pytest.mark.parametrize("name", shared())
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_exact_return_whatever_the_memory(name: str, fails: bool, kind: torch.dtype) -> None:
    """A weight moves by the sum of what is wanted of the parameters that hold it, and returns;
    also where the perturbation is narrower than the weights.
    """
    params = [nn.Parameter(t) for t in shared()[name]]
    before = [p.detach().clone() for p in params]
    eps = [torch.randn(p.shape).to(kind) for p in params]
    wanted = [e.clone() for e in eps]
    at = Landscape(params, [torch.ones(2)], lambda batch, share=1.0: torch.zeros(()))
    try:
        with at.perturbed(Vector(eps)):
            moved = [p.detach() - b for p, b in zip(params, before, strict=True)]
            if fails:
                raise RuntimeError("inside")
    except RuntimeError:
        assert fails
    assert all(torch.equal(p.detach(), b) for p, b in zip(params, before, strict=True))
    if name in ("neighbours", "interleaved", "not contiguous"):
        for step, e in zip(moved, wanted, strict=True):
            torch.testing.assert_close(step, e.float(), rtol=1e-2, atol=1e-5)
    if name == "transposed":
        both = wanted[0] + wanted[1].t()
        torch.testing.assert_close(moved[0], both.float(), rtol=1e-2, atol=2e-2)
    if name == "expanded":
        column = wanted[0].float().sum(0).expand(12, 10)
        torch.testing.assert_close(moved[0], column, rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("held", [False, True])
def test_a_weight_that_others_hold_moves_where_it_is(held: bool) -> None:
    """On a CPU the parameter holds other memory meanwhile, unless somebody would miss it."""
    w = nn.Parameter(torch.ones(4))
    others, place = w.detach() if held else None, w.data_ptr()
    at = Landscape([w], [torch.ones(2)], lambda batch, share=1.0: torch.zeros(()))
    for _ in range(2):
        with at.perturbed(Vector([torch.full((4,), 0.5)])):
            assert w.tolist() == [1.5] * 4
            assert (w.data_ptr() == place) == held
            assert others is None or others.tolist() == [1.5] * 4
        assert w.tolist() == [1.0] * 4 and w.data_ptr() == place


def test_a_graph_from_before_notices_the_perturbation() -> None:
    """It has saved a view of the weights, and would else find those that are no longer there."""
    w, x = nn.Parameter(torch.ones(3, 2)), torch.ones(1, 2, requires_grad=True)
    loss = nn.functional.linear(x, w).square().sum()
    at = Landscape([w], [x], lambda batch, share=1.0: torch.zeros(()))
    with at.perturbed(Vector([torch.ones(3, 2)])), pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_complex_weights_are_refused_by_name() -> None:
    w = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    at = Landscape([w], [torch.ones(2)], lambda batch, share=1.0: torch.zeros(()))
    with (
        pytest.raises(NotImplementedError, match="view_as_real"),
        at.perturbed(Vector([torch.randn_like(w)])),
    ):
        pass


def test_a_sweep_passes_every_element_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "CACHED", SMALL["cached"])
    tensors = [torch.randn(n) for n in (1, 50, 7, 24, 100, 3)] + [None, torch.randn(0)]
    for policy in (*SMALL.values(), GROUPED):
        with forced(policy):
            groups = list(sweep(tensors, tensors))
        assert max(sum(p.numel() for p in g.pieces[0]) for g in groups) <= policy.bytes // 4
        passed = [p.flatten() for g in groups for p in g.pieces[1]]
        wanted = torch.cat([t for t in tensors if t is not None])
        assert torch.equal(torch.cat(passed).sort().values, wanted.sort().values)


def test_parts_are_for_those_who_take_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that scratch memory is a part of a small model, too; a cache bounds it anyway."""
    monkeypatch.setattr(sweeps, "CACHED", SMALL["cached"])
    tensors = [torch.randn(64), torch.randn(64)]
    for eager, parts in ((False, 4), (True, 1)):
        with forced(Policy(4 * 128, eager=eager)):
            assert len(list(sweep(tensors))) == 1
            assert len(list(sweep(tensors, parts=4))) == parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_inner_products_in_few_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator computes, against float64."""
    monkeypatch.setattr(sums, "in_slices", lambda device: False)
    a, b = ([torch.randn(n).to(dtype) for n in (300, 1, 77)] for _ in range(2))
    copies = [t.clone() for t in a]
    found = Sums(4)
    found.add([0, 1, 1], a, b)
    found.add_squares([3], a[:1])
    exact = [float(x.double() @ y.double()) for x, y in zip(a, b, strict=True)]
    square = float(a[0].double().square().sum())
    first, second, none, last = found.numbers
    assert none is None and all(torch.equal(x, y) for x, y in zip(a, copies, strict=True))
    assert [float(first), float(second)] == pytest.approx(  # type: ignore[arg-type]
        [exact[0], exact[1] + exact[2]], rel=1e-4, abs=1e-4
    )
    assert float(last) == pytest.approx(square, rel=1e-5)  # type: ignore[arg-type]
    assert float(found.total) == pytest.approx(sum(exact) + square, rel=1e-4)


def test_scratch_is_used_again() -> None:
    scratch = Scratch()
    first = scratch("mul", [torch.ones(6)], 2.0)[0]
    second = scratch("neg", [torch.ones(2, 2)])[0]
    assert first.data_ptr() == second.data_ptr() and second.tolist() == [[-1, -1], [-1, -1]]
