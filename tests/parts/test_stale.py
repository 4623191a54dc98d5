# SPDX-License-Identifier: Apache-2.0
"""Directions from earlier updates: no pass of their own, whatever method they are put into."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import Composed, Landscape, Method, MomentumSAM, PreviousSAM, SAMTrainer, Vector, When
from hf_sam.parts import chain, every, momentum, previous, radius, rescaled
from tests.toys import Bowl, assert_equal, logged, make_trainer


def updates(method: Method, count: int = 5) -> tuple[list[Vector], list[int]]:
    """Return the updates of a method on the toy, and the passes of each."""
    bowl, found, passes = Bowl(), [], []
    for step in range(count):
        bowl.passes = 0
        found.append(method(bowl.landscape(step)))
        passes.append(bowl.passes)
        with torch.no_grad():
            for p, u in zip(bowl.params, found[-1], strict=True):
                if u is not None:
                    p -= 0.02 * u
    return found, passes


def test_the_part_in_any_method_is_the_method() -> None:
    mine, passes = updates(Composed(chain(previous(), radius(0.3))))
    theirs, _ = updates(PreviousSAM(0.3))
    assert passes == [1] * 5
    for a, b in zip(mine, theirs, strict=True):
        assert_equal([t for t in a if t is not None], [t for t in b if t is not None])


def test_a_combination_of_both_gradients_still_has_two_passes() -> None:
    method = Composed(chain(momentum(0.5), radius(0.3)), rescaled())
    found, passes = updates(method)
    assert passes == [2] * 5
    assert all(math.isfinite(float(u.norm())) for u in found)


def test_under_a_schedule_the_last_gradient_is_that_of_the_last_update_picked() -> None:
    method, bowl = When(every(2), PreviousSAM(0.3)), Bowl()
    plain = method(bowl.landscape(0))
    method(bowl.landscape(1))
    kept = method.method.state.vector("last")
    assert kept is not None
    assert_equal([t for t in kept if t is not None], [t for t in plain if t is not None])


@pytest.mark.parametrize("method", [PreviousSAM(0.3), MomentumSAM(0.3)], ids=str)
def test_what_is_read(method: Method) -> None:
    """The first update is plain; then there is a length and a cosine, and no sharpness."""
    bowl = Bowl()
    first, second = bowl.landscape(0), bowl.landscape(1)
    method(first)
    assert "perturbation_norm" not in first.readings
    before = [p.detach().clone() for p in bowl.params]
    eps = method.state.vector("last" if isinstance(method, PreviousSAM) else "momentum")
    assert eps is not None
    eps = eps.clone().mul_(-1.0 if isinstance(method, MomentumSAM) else 1.0)
    u = method(second)
    assert_equal([p.detach() for p in bowl.params], before)
    assert "sharpness" not in second.readings and not bool(second.readings["skipped"])
    torch.testing.assert_close(float(second.readings["perturbation_norm"]), 0.3)
    cosine = eps.dot(u) / (eps.norm() * u.norm())
    torch.testing.assert_close(second.readings["grad_cosine"], cosine)


@pytest.mark.parametrize("kind", [PreviousSAM, MomentumSAM])
def test_an_overflow_stays_in_the_update_and_out_of_the_state(kind: type[Any]) -> None:
    """Loss scaling has to notice it."""
    method, bowl = kind(rho=0.3), Bowl()
    for step in range(2):
        method(bowl.landscape(step))
    x, y = bowl.batch(2)
    update = method(Landscape(bowl.params, [(x * math.inf, y)], bowl.backward, names=bowl.names))
    assert not math.isfinite(float(update.norm()))
    for value in method.state.values():
        assert isinstance(value, Vector) and math.isfinite(float(value.norm()))
    assert math.isfinite(float(method(bowl.landscape(3)).norm()))


class Watched(SAMTrainer):
    """Compares the direction of each update with the optimizer's own momentum."""

    name = "exp_avg"

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        state = self._method.state.vector("momentum") if self.state.global_step else None
        if state is not None:
            mine = torch.cat([m.flatten() for m in state if m is not None])
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            own = torch.cat([self.optimizer.state[p][self.name].flatten() for p in params])
            self.cosines.append(float(torch.cosine_similarity(mine, own, dim=0)))
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize(
    ("optim", "name"), [("adamw_torch", "exp_avg"), ("sgd", "momentum_buffer")]
)
def test_the_momentum_points_where_the_optimizers_does(
    optim: str, name: str, tmp_path: Path
) -> None:
    """Whoever clears the gradients in between."""
    trainer = make_trainer(
        tmp_path,
        cls=Watched,
        sam="momentum_sam",
        sam_rho=0.1,
        optim=optim,
        optim_args="momentum=0.9" if optim == "sgd" else None,
        max_grad_norm=0.0,
        max_steps=6,
        dtype=torch.float64,
    )
    trainer.name, trainer.cosines = name, []
    trainer.train()
    assert trainer.cosines == pytest.approx([1.0] * 5, abs=1e-9)
    assert logged(trainer, "sam/share_perturbed_updates") == [0.0] + [1.0] * 5
    assert not logged(trainer, "sam/sharpness")
