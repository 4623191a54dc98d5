# SPDX-License-Identifier: Apache-2.0
"""What methods carry along: no poison, no host synchronisation, no more memory than they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sam import METHODS, RSAM, Landscape, LookSAM, Plain, Progress, Vector
from hf_sam.engine.checkpoint import load_state, save_state
from hf_sam.estimate.allocations import Allocations
from hf_sam.landscape import Engine
from hf_sam.parts.noise import CHUNK, normal
from hf_sam.sweeps import GROUPED, Policy, forced
from tests.cases import CASES, Case
from tests.methods.quadratic import Quadratic, close
from tests.toys import Bowl, bowl_for


def poisoned(q: Quadratic, at_pass: int, bad: float) -> Any:
    """The quadratic's backward, with a bad gradient in one pass."""
    count = 0

    def backward(batch: Any, share: float = 1.0) -> Tensor:
        nonlocal count
        loss = q.backward(batch, share)
        if count == at_pass:
            q.params[0].grad[0] = bad
        count += 1
        return loss

    return backward


class TestLookSAM:
    @pytest.mark.parametrize("at_pass", [0, 1])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_an_overflow_leaves_no_vertical_part(self, at_pass: int, bad: float) -> None:
        """To keep the old one would take one more copy of the weights in every refresh."""
        q, method = Quadratic(), LookSAM(k=2)
        q.update(method, 0), q.update(method, 1)
        update = method(Landscape(q.params, [2], poisoned(q, at_pass, bad)))
        assert at_pass == 0 or not torch.isfinite(update[0]).all(), "the scaler has to see it"
        assert not method.state["vertical"][0].any()
        assert torch.equal(q.update(method, 3), q.update(Plain(), 3))

    def test_an_overflow_at_the_first_refresh_means_plain_updates(self) -> None:
        q, method = Quadratic(), LookSAM(k=3)
        method(Landscape(q.params, [0], poisoned(q, 1, float("inf"))))
        assert torch.equal(q.update(method, 1), q.update(Plain(), 1))
        q.update(method, 2), q.update(method, 3)
        assert not torch.equal(q.update(method, 4), q.update(Plain(), 4))

    def test_a_vertical_part_of_rounding_is_none(self) -> None:
        """In one dimension both gradients are parallel."""
        q, method = Quadratic(w=(0.7, 0.0)), LookSAM(k=2)
        q.update(method, 0)
        close(method.state["vertical"][0], [0.0, 0.0], atol=0.0)
        assert torch.equal(q.update(method, 1), q.update(Plain(), 1))

    def test_a_parameter_without_a_gradient_counts_as_zero(self) -> None:
        """Also one that had a gradient at the refresh: its update stays missing."""
        bowl, method = Bowl(), LookSAM(k=2)
        bowl.optional = False
        method(bowl.landscape(0))
        assert method.state["vertical"][3] is not None
        bowl.optional = True
        assert method(bowl.landscape(1))[3] is None
        method(bowl.landscape(2))
        assert method.state["vertical"][3] is None
        bowl.optional = False
        assert method(bowl.landscape(3))[3] is not None


class TestNoise:
    """R-SAM's noise is drawn again instead of stored."""

    def test_it_is_a_function_of_its_key(self) -> None:
        like = torch.empty(50, 40)
        z = normal(like, (3, 5, 7))
        torch.manual_seed(1)
        assert torch.equal(z, normal(like, (3, 5, 7)))
        others = [normal(like, key) for key in [(4, 5, 7), (3, 6, 7), (3, 5, 8), (-3, 5, 7)]]
        for other in others:
            assert abs(float((z * other).mean())) < 0.1

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_it_is_normal(self, dtype: torch.dtype) -> None:
        z = normal(torch.empty(400, 1000, dtype=dtype), (0, 0, 0))
        assert z.dtype == dtype and z.shape == (400, 1000)
        z = z.double()
        assert abs(float(z.mean())) < 0.01
        assert float(z.pow(2).mean()) == pytest.approx(1.0, abs=0.01)
        assert float(z.pow(4).mean()) == pytest.approx(3.0, abs=0.1)
        assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.005)
        assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < 0.01

    def test_it_goes_on_across_chunks(self) -> None:
        """Three and a bit of them: no stretch repeats."""
        z = normal(torch.empty(3 * CHUNK + 5), (1, 2, 3))
        for a in range(3):
            one, other = z[a * CHUNK :][:CHUNK], z[(a + 1) * CHUNK :][:CHUNK]
            assert not torch.equal(one[: len(other)], other)
        assert torch.isfinite(z).all()

    def test_it_follows_the_filters(self) -> None:
        """The rows of a matrix and of a convolution's kernel; a vector as a whole."""
        shapes = [(3, 5000), (2, 10, 10, 50), (5000,)]
        params = [torch.nn.Parameter(torch.full(s, 0.1)) for s in shapes]
        with torch.no_grad():
            params[0][1] *= 4
            params[1][1] *= 0
        at = Landscape(params, [None], lambda batch, share=1.0: None, progress=Progress(10, 10))
        rsam = RSAM(sigma=0.5)
        noise: Any = list(rsam.noise(at, rsam.sizes(at)))
        row = 0.5 * 0.1 * 5000**0.5
        assert noise[0].std(1).tolist() == pytest.approx([row, 4 * row, row], rel=0.05)
        assert noise[1].flatten(1).std(1).tolist() == pytest.approx([row, 0.0], rel=0.05)
        assert float(noise[2].std()) == pytest.approx(row, rel=0.05)

    def test_only_where_it_may_be(self) -> None:
        bowl = Bowl()
        seen = []

        def backward(batch: Any, share: float = 1.0) -> Tensor:
            seen.append([p.detach().clone() for p in bowl.params])
            return bowl.backward(batch, share)

        before = [p.detach().clone() for p in bowl.params]
        at = Landscape(
            bowl.params, [bowl.batch(0)], backward, where=[True, False, True, True], seed=1
        )
        RSAM(sigma=0.1)(at)
        for there in seen:
            moved = [not torch.equal(a, b) for a, b in zip(before, there, strict=True)]
            assert moved[:3] == [True, False, True]


# Coins, masks and selections are drawn or renewed on the host, and AE-SAM's gate opens there.
ON_DEVICE = [c for c in CASES if c.key not in ("ss_sam", "ssam_f", "ssam_d", "esam", "ae_sam")]


@pytest.mark.parametrize("case", ON_DEVICE, ids=str)
def test_no_host_synchronisation(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the way from gradients to update waits for a number from the device."""
    bowl, method = bowl_for(case), METHODS[case.key]()
    landscapes = [bowl.landscape(step, total=7) for step in range(7)]
    METHODS[case.key]()(bowl.landscape(6, total=7))  # quantiles are tabled once, on the host
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy"):

        def asked(self: Tensor, *args: Any, name: str = name) -> None:
            raise AssertionError(f"Tensor.{name} waits for the device")

        monkeypatch.setattr(Tensor, name, asked)
    with forced(GROUPED):  # a CPU may look at its own numbers
        for at in landscapes:
            method(at)


def peaks(key: str, updates: int = 7) -> tuple[list[float], float]:
    """Peak memory of each update and memory held after the last, in P, beside the weights."""
    params = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(32)]
    size = sum(p.numel() * 4 for p in params)

    def backward(batch: int, share: float = 1.0, with_losses: bool = False) -> Any:
        for i, p in enumerate(params):
            gradient = torch.roll(p.detach(), i + batch).add_(0.1)
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return (torch.zeros(()), torch.zeros(1)) if with_losses else torch.zeros(())

    method, held, found = METHODS[key](), 0.0, []
    for step in range(updates):
        at = Landscape(params, [step], backward, progress=Progress(step, updates, lr_ratio=1.0))
        with Allocations() as these:
            update = method(at)
            del update, at
            these.mark("after")
        found.append(held + these.peaks[""] / size)
        held += these.peaks["after"] / size
    return found, held


@pytest.mark.parametrize(
    ("key", "extra", "state"),
    [
        ("sam", 1, 0),
        ("ss_sam", 1, 0),
        ("late_sam", 1, 0),
        ("stable_sam", 1, 0),
        ("rsam", 1, 0),
        ("friendly_sam", 2, 1),
        ("bilateral_sam", 2, 0),
        ("looksam", 2, 1),
    ],
)
def test_memory_is_what_the_page_says(key: str, extra: int, state: int) -> None:
    """Law 10: beyond the plain Trainer's one gradient; 0.15 P are single tensors of scratch."""
    with forced(Policy(1 << 14, eager=True)):  # one of the toy's tensors at a time
        found, held = peaks(key)
    assert max(found) - 1 == pytest.approx(extra, abs=0.15)
    assert held == pytest.approx(state, abs=0.01)
    assert METHODS[key].memory == str(extra)
    if key == "looksam":
        between = found[1:5]
        assert max(between) - 1 == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["sam_state.json", "sam_state.safetensors"])
@pytest.mark.parametrize("content", [b"", b'{"method": {"name": "LookSAM"', b"{}"])
def test_a_broken_state_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    """A training that was killed while it wrote leaves no such file; a full disk may."""
    params = [torch.nn.Parameter(torch.ones(2))]
    method, here = LookSAM(), (["w"], params, Engine())
    method.state.update(updates=3, vertical=Vector([torch.ones(2)]))
    save_state(tmp_path, method.describe(), method.state_dict(), *here, main=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sam_state.json", "sam_state.safetensors"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.*LookSAM in it is broken"):
        load_state(tmp_path, method.describe(), *here)
