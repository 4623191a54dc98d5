# SPDX-License-Identifier: Apache-2.0
"""Worked examples: each number was computed by hand (or by the authors' code), outside hf_sam."""

from __future__ import annotations

import pytest
import torch

from hf_sam import (
    ASAM,
    METHODS,
    RSAM,
    SAM,
    WSAM,
    BilateralSAM,
    FriendlySAM,
    LateSAM,
    LookSAM,
    MomentumSAM,
    Plain,
    Progress,
    StableSAM,
    Vector,
)
from tests.cases import CASES
from tests.methods.quadratic import LR, A, Quadratic, close
from tests.references import REFERENCES, by_hand


@pytest.mark.parametrize("key", [key for key in REFERENCES if by_hand(key)])
def test_examples_worked_out_on_paper(key: str) -> None:
    for example in by_hand(key):
        q, method = Quadratic(), METHODS[key](**example.options)
        q.gradients = None if example.gradients is None else [list(g) for g in example.gradients]
        for step in range(max(len(example.eps), len(example.weights))):
            update = q.update(method, step)
            if example.eps:
                close(q.eps(), example.eps[step])
            if example.weights:
                q.descend(update)
                close(q.w, example.weights[step])


class TestSAM:
    def test_one_update(self) -> None:
        q = Quadratic()
        at = q.at()
        there = SAM(0.05)(at)[0]
        close(q.eps(), [0.0098058068, 0.0490290338])
        close(there, [1.0098058068, 5.4902903378])
        close(q.w - LR * there, [0.8990194193, -0.0490290338])
        close(at.readings["sharpness"], 0.2670182834)
        close(at.readings["ascent_grad_norm"], 5.0990195136)

    def test_three_updates(self) -> None:
        close(Quadratic().train(SAM(0.05), 3)[-1], [0.7194626087, -0.0142567803])
        close(Quadratic().train(Plain(), 3)[-1], [0.729, 0.0])

    @pytest.mark.parametrize(("a", "amplitude"), [(10.0, 0.05), (1.0, 0.0026315789)])
    def test_it_settles_into_a_cycle(self, a: float, amplitude: float) -> None:
        """In one dimension SAM ends up jumping between two points at lr a rho / (2 - lr a)."""
        w = (0.0, 0.3) if a == 10.0 else (0.3, 0.0)
        path = Quadratic(w=w).train(SAM(0.05), 400)
        last = [abs(float(p.sum())) for p in path[-2:]]
        assert last == pytest.approx([amplitude, amplitude], abs=1e-9)
        assert float(path[-1].sum()) * float(path[-2].sum()) < 0

    def test_the_first_adamw_step(self) -> None:
        q = Quadratic()
        optimizer = torch.optim.AdamW(q.params, lr=1e-3, weight_decay=0.01)
        q.params[0].grad = SAM(0.05)(q.at())[0]
        optimizer.step()
        close(q.w, [0.99899, 0.498995])

    def test_weight_decay_in_the_loss_or_outside(self) -> None:
        inside = Quadratic()
        inside.decay = 0.1
        update = inside.update(SAM(0.05))
        close(inside.eps(), [0.010641563, 0.0488544485])
        close(inside.w - LR * update, [0.8888294281, -0.054342993])
        outside = Quadratic()
        optimizer = torch.optim.SGD(outside.params, lr=LR, weight_decay=0.1)
        outside.params[0].grad = SAM(0.05)(outside.at())[0]
        optimizer.step()
        close(outside.w, [0.8890194193, -0.0540290338])

    def test_the_loss_scale_does_not_matter(self) -> None:
        q = Quadratic()
        q.scale = 2.0**16
        q.update(SAM(0.05))
        close(q.eps(), [0.0098058068, 0.0490290338])

    def test_zero_gradient(self) -> None:
        q = Quadratic(w=(0.0, 0.0))
        at = q.at()
        close(SAM(0.05)(at)[0], [0.0, 0.0])
        assert bool(at.readings["skipped"])


def test_decoupled_wsam_beside_adam() -> None:
    q = Quadratic()
    optimizer = torch.optim.Adam(q.params, lr=0.1)
    place = Progress(learning_rate=0.1)
    q.params[0].grad = WSAM(decoupled=True)(q.at(progress=place))[0]
    optimizer.step()
    close(q.w, [0.8911747749, -0.0412613039])


def test_momentum_sam_beside_sgd_with_momentum() -> None:
    """The paper's rule v <- mu v + g, w <- w - eta v, from both sides at once."""
    q = Quadratic()
    optimizer = torch.optim.SGD(q.params, lr=0.01, momentum=0.9)
    method, path = MomentumSAM(rho=0.05), []
    for step in range(3):
        q.params[0].grad = method(q.at(step))[0]
        optimizer.step()
        path.append(q.w)
    close(path[0], [0.99, 0.45])
    close(path[1], [0.9711980581, 0.3649029034])
    close(path[2], [0.9446722016, 0.2567074763])


class TestASAM:
    def test_one_update(self) -> None:
        q = Quadratic()
        update = q.update(ASAM(0.5, 0.01))
        close(q.eps(), [0.185963952, 0.2370807956])
        close(q.w - LR * update, [0.8814036048, -0.2370807956])

    def test_eta_zero(self) -> None:
        q = Quadratic()
        update = q.update(ASAM(0.5, 0.0))
        close(q.eps(), [0.1856953382, 0.2321191727])
        close(q.w - LR * update, [0.8814304662, -0.2321191727])

    def test_rescaling_a_layer_changes_nothing(self) -> None:
        """(w, g) -> (c w, g / c) leaves eps / w as it is, for eta = 0."""
        q, scaled = Quadratic(), Quadratic(w=(3.0, 1.5))
        q.gradients, scaled.gradients = [[1.0, 5.0]], [[1.0 / 3, 5.0 / 3]]
        for each in (q, scaled):
            each.update(ASAM(0.5, 0.0))
        torch.testing.assert_close(q.eps() / q.w, scaled.eps() / scaled.w)


class TestLookSAM:
    def test_two_windows(self) -> None:
        q, method = Quadratic(), LookSAM(k=2, alpha=0.7)
        updates, verticals, path = [], [], []
        for step in range(4):
            updates.append(q.update(method, step))
            verticals.append(method.state["vertical"][0].clone())
            with torch.no_grad():
                q.params[0] -= LR * updates[-1]
            path.append(q.w)
        close(verticals[0], [-0.0848579431, 0.0169715886])
        close(verticals[0] @ torch.tensor([1.0, 5.0], dtype=torch.float64), 0.0)
        close(updates[1], [0.1961242659, -0.3497113072])
        close(updates[2], [0.9287801282, -0.2195052569])
        close(path[0], [0.8990194193, -0.0490290338])
        close(path[1], [0.8794069927, -0.0140579031])
        close(path[2], [0.7865289799, 0.0078926226])
        close(path[3], [0.7166106163, 0.0546398034])

    def test_k_of_one_is_sam(self) -> None:
        for a, b in zip(
            Quadratic().train(LookSAM(k=1), 5), Quadratic().train(SAM(), 5), strict=True
        ):
            assert torch.equal(a, b)

    def test_alpha_of_zero_is_the_gradient_between_refreshes(self) -> None:
        q, method = Quadratic(), LookSAM(k=1000, alpha=0.0)
        q.train(method, 1)
        assert torch.equal(q.update(method, 1), q.update(Plain(), 1))

    def test_layerwise(self) -> None:
        unit = Quadratic(split=True)
        update = unit.update(LookSAM(layerwise="unit"))
        close(unit.eps(), [0.05, 0.05])
        close(unit.w - LR * update, [0.895, -0.05])
        trust = Quadratic(split=True)
        trust.update(LookSAM(layerwise="trust"))
        close(trust.eps(), [0.05, 0.025])


class TestFriendlySAM:
    @pytest.mark.parametrize("sigma", [1.0, 0.5])
    def test_two_given_gradients(self, sigma: float) -> None:
        q, method = Quadratic(), FriendlySAM(decay=0.6, sigma=sigma)
        q.gradients = [[1.0, 5.0], [2.0, 4.0]]
        q.update(method, 0)
        close(q.eps(), [0.0098058068, 0.0490290338])
        q.update(method, 1)
        if sigma == 1.0:
            close(q.eps(), [0.0353553391, -0.0353553391])
        else:
            code = torch.tensor([2.0 - 0.5 * 1.0, 4.0 - 0.5 * 5.0], dtype=torch.float64)
            close(torch.cosine_similarity(q.eps(), code, 0), 0.9912279007)

    def test_a_gradient_that_never_changes_has_no_noise(self) -> None:
        q, method = Quadratic(), FriendlySAM(decay=0.6)
        q.gradients = [[0.1, 0.7]] * 9
        for step in range(9):
            at = q.at(step)
            q.seen = []
            method(at)
            assert (q.eps().abs().max() > 0) == (step == 0)
            assert bool(at.readings["skipped"]) == (step > 0)


class TestStableSAM:
    def test_one_update(self) -> None:
        q = Quadratic()
        update = q.update(StableSAM(0.05))
        close(update, [0.9223695079, 5.0149012444])
        close(update.norm(), 5.0990195136)
        close(q.w - LR * update, [0.9077630492, -0.0014901244])

    def test_in_one_dimension_it_is_gradient_descent(self) -> None:
        ours, plain = Quadratic(w=(0.8, 0.0)), Quadratic(w=(0.8, 0.0))
        close(ours.train(StableSAM(), 5)[-1], plain.train(Plain(), 5)[-1].tolist())


class TestBilateralSAM:
    def test_one_update(self) -> None:
        q = Quadratic()
        update = q.update(BilateralSAM())
        close(update, [0.81260474, 5.0377950039])
        close(q.w - LR * update, [0.918739526, -0.0037795004])
        close(q.eps(1), [0.0098058068, 0.0490290338])
        close(q.eps(2), [-0.0098058068, -0.0490290338])

    def test_nothing_below(self) -> None:
        """u = above + (1 - |above| / |here|) here."""
        q = Quadratic()
        here, above = q.update(Plain()), q.update(SAM())
        expected = above + (1 - above.norm() / here.norm()) * here
        close(q.update(BilateralSAM(rho_min=0.0)), expected.tolist())

    def test_the_radius_below_follows_the_learning_rate(self) -> None:
        q = Quadratic()
        q.update(BilateralSAM(rho_min=0.2), progress=Progress(3, 9, lr_ratio=0.25))
        close(q.eps(1).norm(), 0.05)
        close(q.eps(2).norm(), 0.05)
        close(q.eps(2), [-0.0098058068, -0.0490290338])


class TestRSAM:
    def test_given_noise(self) -> None:
        class Given(RSAM):
            def noise(self, at: object, sizes: object) -> Vector:
                return Vector([torch.tensor([0.01, -0.02], dtype=torch.float64)])

        q = Quadratic()
        at = q.at()
        update = Given()(at)[0]
        close(q.eps(0), [0.01, -0.02])
        close(at.readings["ascent_grad_norm"], (1.01**2 + 4.8**2) ** 0.5)
        close(q.eps(), [0.010364846, 0.0489139036])
        close(q.w - LR * update, [0.8989635154, -0.0489139036])

    def test_the_scale_over_the_run(self) -> None:
        close([RSAM().scale(x) for x in (0.0, 0.5, 1.0)], [0.0005, 0.0015, 0.0025])

    def test_without_noise_it_is_sam(self) -> None:
        a, b = Quadratic().train(RSAM(sigma=0.0), 5), Quadratic().train(SAM(), 5)
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one, other)


class TestLateSAM:
    def test_the_last_fifth_of_ten_updates(self) -> None:
        q = Quadratic()
        passes = []
        for step in range(10):
            q.update(LateSAM(start=0.8), step, progress=Progress(step, 10))
            passes.append(len(q.seen))
        assert passes == [1] * 8 + [2, 2] and sum(passes) == 12

    def test_from_the_start_it_is_sam_and_never_it_is_plain(self) -> None:
        for start, same in ((0.0, SAM()), (1.0, Plain())):
            a = Quadratic().train(LateSAM(start=start), 6)
            b = Quadratic().train(same, 6)
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "key",
    [
        c.key
        for c in CASES
        if c.key not in ("ssam_f", "esam", "head_sam", "functional_sam") and not c.adapters
    ],
)
def test_it_moves_the_quadratic_downhill(key: str) -> None:
    """Thirty updates with the method's defaults; the others want data to draw or select, or
    adapters.
    """
    end = Quadratic().train(METHODS[key](), 30, lr=0.02)[-1]
    assert float(0.5 * (end * A * end).sum()) < 0.6 * 1.75
