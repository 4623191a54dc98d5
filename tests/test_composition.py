# SPDX-License-Identifier: Apache-2.0
"""Parts of one paper handed to another: every pairing trains, or is refused with the reason."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_sam.parts
from hf_sam import (
    ASAM,
    ESAM,
    METHODS,
    MSAM,
    SAM,
    Composed,
    FriendlySAM,
    LookSAM,
    Method,
    PerGroup,
    Progress,
    SAMArguments,
    When,
)
from hf_sam.arguments import build_method
from hf_sam.methods import asks
from hf_sam.parts import (
    Mask,
    adaptive,
    adaptive_radius,
    after,
    after_warmup,
    always,
    before,
    between,
    budget,
    chain,
    constant,
    cosine,
    decay,
    dynamic_mask,
    every,
    fisher_mask,
    layer_radius,
    learning,
    loss,
    lr,
    minus_average,
    piecewise,
    radius,
    relative,
    rescaled,
    trigonometric,
)
from hf_sam.parts.base import Part
from hf_sam.parts.radius import linear as linear_radius
from hf_sam.parts.when import linear as linear_coin
from tests.cases import CASES, Case
from tests.references.ss_sam import coin
from tests.toys import Bowl, assert_equal, bowl_for, logged, make_trainer, train, weights

STEPS, SEED, WARMUP = 4, 7, 2
RATES = (0.25, 0.5, 1.0, 0.5)
"""The learning rate of each update, as a share of its maximum."""
Picks = Callable[[int], bool]


def tossed(probability: Callable[[float], float]) -> Picks:
    return lambda t: coin(SEED, t) < probability(t / STEPS)


SCHEDULES: dict[str, tuple[Callable[[], Any], Picks | None]] = {
    "always": (always, lambda t: True),
    "after:0.5": (lambda: after(0.5), lambda t: t >= 2),
    "before:0.5": (lambda: before(0.5), lambda t: t < 2),
    "between:0.25:0.75": (lambda: between(0.25, 0.75), lambda t: t in (1, 2)),
    "every:2": (lambda: every(2), lambda t: t % 2 == 0),
    "after_warmup": (after_warmup, lambda t: t >= WARMUP),
    "decay": (decay, lambda t: t > WARMUP),
    "random:constant:0.5": (lambda: constant(0.5), tossed(lambda x: 0.5)),
    "random:piecewise:0:1:0.5": (
        lambda: piecewise(0.0, 1.0, 0.5),
        tossed(lambda x: float(x >= 0.5)),
    ),
    "random:linear:0:1": (lambda: linear_coin(0.0, 1.0), tossed(lambda x: x)),
    "random:trigonometric:0:1": (
        lambda: trigonometric(0.0, 1.0),
        tossed(lambda x: math.sin(math.pi * x / 2) ** 2),
    ),
    "learning": (learning, lambda t: False),  # not within so few updates
    "adaptive": (adaptive, None),  # by the gradient's norm
}
MASKS: dict[str, Callable[[], Mask] | None] = {
    "no mask": None,
    "fisher": lambda: fisher_mask(0.5, 2, 3),
    "structured": lambda: fisher_mask(0.5, 2, 3, "structured"),
    "2:4": lambda: fisher_mask(0.5, 2, 3, "2:4"),
    "dynamic": lambda: dynamic_mask(0.5, 2),
}
DIRECTIONS: dict[str, Callable[[], Any] | None] = {"gradient": None, "friendly": minus_average}
RADII: dict[str, Callable[[], Any]] = {
    "radius": lambda: radius(0.1),
    "linear": lambda: radius(linear_radius(0.1, 0.02)),
    "cosine": lambda: radius(cosine(0.1, 0.02)),
    "lr": lambda: radius(lr(0.1)),
    "budget": lambda: radius(budget(0.1, 0.5)),
    "loss": lambda: radius(loss(0.1, 0.5, 1.0)),
    "relative": lambda: radius(relative(0.1)),
    "adaptive radius": lambda: adaptive_radius(0.5),
    "unit": lambda: layer_radius(0.05, "unit"),
    "trust": lambda: layer_radius(0.05, "trust"),
}
COMBINES: dict[str, dict[str, Any]] = {"there": {}, "rescaled": {"combine": rescaled()}}


class Run:
    """Four updates of plain descent with a method on the toy; each law is looked at on the way.

    Attributes:
        passes: of each update.
        perturbed: whether each update was.
        sizes: of the perturbations.
        squares: of the gradient's norm at w before each update.
        moved: how far the weights went in all.
    """

    def __init__(
        self, method: Method, batches: int = 1, where: Any = None, case: Case | None = None
    ) -> None:
        self.bowl = Bowl() if case is None else bowl_for(case)
        self.stays = case is None or not case.moves
        self.adapters = case is not None and case.adapters
        self.passes: list[int] = []
        self.perturbed: list[bool] = []
        self.sizes: list[float] = []
        self.squares: list[float] = []
        start = [p.detach().clone() for p in self.bowl.params]
        for step in range(STEPS):
            self._update(method, step, batches, where or [True] * 4)
        ends = zip(self.bowl.params, start, strict=True)
        self.moved = max(float((p.detach() - b).abs().max()) for p, b in ends)

    def _update(self, method: Method, step: int, batches: int, where: list[bool]) -> None:
        progress = Progress(step, STEPS, WARMUP, 2, RATES[step], learning_rate=0.02)
        more = {"batches": batches, "seed": SEED, "progress": progress, "where": where}
        bowl = self.bowl
        self.squares.append(float(bowl.landscape(step, **more).gradient().norm()) ** 2)
        before = [p.detach().clone() for p in bowl.params]
        at = bowl.landscape(step, **more)
        bowl.passes = 0
        update = method(at)
        self.passes.append(bowl.passes)
        self.perturbed.append("perturbation_norm" in at.readings)
        for p, b in zip(bowl.params, before, strict=True):
            assert torch.equal(p.detach(), b) or not self.stays, "the weights did not return"
            assert p.grad is None, "a gradient was left behind"
        assert [u is not None for u in update] == [True, True, True, False]
        assert all(bool(torch.isfinite(u).all()) for u in update if u is not None)
        assert bool(torch.isfinite(at.mean_loss()))
        if self.perturbed[-1]:
            self.sizes.append(float(at.readings["perturbation_norm"]))
            skipped = bool(at.readings["skipped"])
            # A second adapter begins at zero.
            assert (self.sizes[-1] == 0) == skipped or self.adapters
        with torch.no_grad():
            for p, u in zip(bowl.params, update, strict=True):
                if u is not None:
                    p -= 0.02 * u


def gate(squares: list[float]) -> list[bool]:
    """AE-SAM's rule with its defaults, from the beginning."""
    mean, variance, found = squares[0], 0.0, []
    for t, square in enumerate(squares):
        mean = 0.9 * mean + 0.1 * square
        variance = 0.9 * variance + 0.1 * (square - mean) ** 2
        x = t / STEPS
        found.append(square >= mean + ((1 - x) - x) * math.sqrt(variance))
    return found


def picked(schedule: str, run: Run) -> list[bool]:
    picks = SCHEDULES[schedule][1]
    return gate(run.squares) if picks is None else [picks(t) for t in range(STEPS)]


def renewals(perturbed: list[bool]) -> list[bool]:
    """Where a mask that lasts two updates is renewed: only an update that perturbs needs one."""
    last, found = None, []
    for t, yes in enumerate(perturbed):
        new = yes and (last is None or t - last >= 2)
        last = t if new else last
        found.append(new)
    return found


def check(method: Method, schedule: str, mask: str = "no mask", **more: Any) -> Run:
    run = Run(method, **more)
    expected = picked(schedule, run)
    assert run.perturbed == expected
    draws = [0] * STEPS
    if mask in ("fisher", "structured", "2:4"):
        draws = [3 * new for new in renewals(expected)]
    assert run.passes == [1 + yes + n for yes, n in zip(expected, draws, strict=True)]
    assert run.moved > 1e-3 and all(size > 0 for size in run.sizes)
    return run


def composed(direction: str, far: str, mask: str, combine: str) -> Composed:
    """The parts of these names; new ones, for they have state."""
    parts = [DIRECTIONS[direction], RADII[far], MASKS[mask]]
    return Composed(chain(*(part() for part in parts if part)), **COMBINES[combine])


ASCENTS = list(itertools.product(DIRECTIONS, RADII, MASKS, COMBINES))
PAIRINGS = len(ASCENTS) * len(SCHEDULES)


def named(*parts: str) -> str:
    return " ".join(parts)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("far", RADII)
def test_every_direction_radius_mask_and_combination(far: str, mask: str) -> None:
    for direction, combine in itertools.product(DIRECTIONS, COMBINES):
        check(composed(direction, far, mask, combine), "always", mask)


def fifty(turn: int) -> list[tuple[str, str, str, str]]:
    """Each radius with each mask, and the others so that each two parts meet somewhere."""
    directions, combines = list(DIRECTIONS), list(COMBINES)
    return [
        (directions[(i + j + turn) % 2], far, mask, combines[(i // 2 + j + turn // 2) % 2])
        for (i, far), (j, mask) in itertools.product(enumerate(RADII), enumerate(MASKS))
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_with_every_ascent(schedule: str) -> None:
    """Each schedule meets each mask, direction, radius and combination, and each two of them."""
    chosen = fifty(list(SCHEDULES).index(schedule))
    kinds = itertools.combinations((DIRECTIONS, RADII, MASKS, COMBINES), 2)
    pairs = {pair for names in chosen for pair in itertools.combinations(names, 2)}
    assert pairs == {pair for one, other in kinds for pair in itertools.product(one, other)}
    for names in chosen:
        check(When(SCHEDULES[schedule][0](), composed(*names)), schedule, names[2])


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pairing(schedule: str) -> None:
    """2600 of them."""
    assert PAIRINGS == 2600
    for names in ASCENTS:
        check(When(SCHEDULES[schedule][0](), composed(*names)), schedule, names[2])


# -- methods of the papers under schedules, masks and groups --------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "ssam_f": {"fisher_samples": 3, "update_interval": 2},
    "ssam_d": {"update_interval": 2},
    "msam": {"micro_batches": 2},
    "looksam": {"k": 2},
    "ss_sam": {"schedule": "constant", "p_start": 0.5},
    "late_sam": {"start": 0.5},
}
KEYS = [key for key in METHODS if key != "none"]
SCHEDULED = {
    "ss_sam": "random:constant:0.5",
    "late_sam": "after:0.5",
    "tail_sam": "decay",
    "ae_sam": "adaptive",
}
ROWS = {case.key: case for case in CASES}
BUILT = {key: METHODS[key](**OPTIONS.get(key, {})) for key in KEYS}
NOT_AT_W = [key for key, method in BUILT.items() if not asks(method).starts_at_w]
STATEFUL = [key for key, method in BUILT.items() if method.keeps_state]
assert set(SCHEDULED) == {key for key, method in BUILT.items() if method.when is not None}


def arguments(key: str, when: str = "always", **more: Any) -> SAMArguments:
    return SAMArguments(sam=key, sam_when=when, sam_options=OPTIONS.get(key), **more)


def refusal(key: str, when: str) -> str | None:
    """Why a method is refused under a schedule; None where it is not."""
    if when != "always" and key in SCHEDULED:
        return "second schedule beside the one that"
    if when == "adaptive" and key in NOT_AT_W:
        return "decides by the whole gradient at w, which .* does not compute first"
    return None


def cost(key: str, perturbed: list[bool]) -> list[int]:
    """The passes of each update, from the papers."""
    new, nth = renewals(perturbed), itertools.count()
    table: dict[str, Callable[[int], int]] = {
        "ssam_f": lambda t: 2 + 3 * new[t],
        "looksam": lambda t: 1 if next(nth) % 2 else 2,
        "late_sam": lambda t: 2,
        "ss_sam": lambda t: 2,
        "tail_sam": lambda t: 2,
        "ae_sam": lambda t: 2,
    }
    row = table.get(key, lambda t: ROWS[key].passes(t, STEPS))
    return [row(t) if yes else 1 for t, yes in enumerate(perturbed)]


def without_first(key: str, picks: list[bool]) -> list[bool]:
    """Leave out the first pick of a method that perturbs along what its earlier updates found."""
    first = picks.index(True) if ROWS[key].earlier and any(picks) else None
    return [yes and t != first for t, yes in enumerate(picks)]


PAIRS = list(itertools.product(KEYS, SCHEDULES))


@pytest.mark.parametrize(("key", "when"), PAIRS, ids=[named(*p) for p in PAIRS])
def test_every_method_under_every_schedule(key: str, when: str) -> None:
    """By their names, as on a command line."""
    reason = refusal(key, when)
    if reason:
        with pytest.raises(ValueError, match=reason):
            arguments(key, when)
        return
    run = Run(build_method(arguments(key, when)), batches=1, case=ROWS[key])
    expected = picked(SCHEDULED.get(key, when), run)
    assert run.passes == cost(key, expected)
    # The first one reuses a part of an earlier update in between; the noise of the other begins
    # at zero.
    if key not in ("looksam", "flat_lora"):
        assert run.perturbed == without_first(key, expected)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", [(1, 0, 1, 1), (0, 1, 0, 0), (0, 0, 1, 0)], ids=str)
def test_every_method_anywhere(key: str, where: tuple[int, ...]) -> None:
    """What is left out is not perturbed, and is updated all the same."""
    more = {"rho_min": 0.02} if key == "bilateral_sam" else {}
    method = METHODS[key](**{**OPTIONS.get(key, {}), **more})
    run = Run(method, where=[bool(yes) for yes in where], case=ROWS[key])
    expected = picked(SCHEDULED.get(key, "always"), run)
    if key == "ssam_f":
        assert sum(run.passes) == 8 + 6
    else:
        assert run.passes == cost(key, expected)


@pytest.mark.parametrize("key", KEYS)
def test_every_method_per_micro_batch(key: str) -> None:
    if key in STATEFUL:
        with pytest.raises(ValueError, match="carries state from update to update"):
            arguments(key, sam_accumulation="micro")
    elif key == "msam":
        with pytest.raises(ValueError, match="MSAM has its own groups"):
            arguments(key, sam_accumulation="micro")
    elif ROWS[key].adapters:
        with pytest.raises(ValueError, match="works on the adapters once per update"):
            arguments(key, sam_accumulation="micro")
    else:
        run = Run(build_method(arguments(key, sam_accumulation="micro")), batches=2)
        expected = picked(SCHEDULED.get(key, "always"), run)
        assert run.passes == [2 * n for n in cost(key, expected)]


@pytest.mark.parametrize(
    ("direction", "far", "mask"), list(itertools.product(DIRECTIONS, RADII, MASKS))
)
def test_every_ascent_in_groups(direction: str, far: str, mask: str) -> None:
    """Without state it may be; with state each group would move it."""
    method = composed(direction, far, mask, "there")
    if method.keeps_state:
        with pytest.raises(ValueError, match=r"(mask|minus_average).* carries state"):
            PerGroup(2, method)
    else:
        assert Run(PerGroup(2, method)).passes == [4] * STEPS
        run = Run(When(every(2), PerGroup(None, method)), batches=3)
        assert run.passes == [6, 3, 6, 3] and run.perturbed == [True, False, True, False]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_rescaled_keeps_the_length_of_the_gradient_at_w(direction: str, mask: str) -> None:
    bowl = Bowl()
    plain = METHODS["none"]()(bowl.landscape(3))
    update = composed(direction, "radius", mask, "rescaled")(bowl.landscape(3, total=4))
    assert float(update.norm()) == pytest.approx(float(plain.norm()), rel=1e-9)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "state in groups": (lambda: PerGroup(2, LookSAM()), "LookSAM carries state"),
    "a stateful schedule in groups": (
        lambda: PerGroup(2, When(adaptive(), SAM())),
        "adaptive carries state",
    ),
    "adaptive over groups": (
        lambda: When(adaptive(), PerGroup(2, SAM())),
        "'adaptive' decides by the whole gradient at w, which PerGroup does not compute first",
    ),
    "adaptive over mSAM": (lambda: When(adaptive(), MSAM()), "which MSAM does not compute first"),
    "adaptive with ESAM otherwise": (
        lambda: When(adaptive(), SAM(), otherwise=ESAM()),
        "which ESAM does not compute first",
    ),
    "adaptive within adaptive over ESAM": (
        lambda: When(adaptive(), When(every(2), ESAM())),
        "which When does not compute first",
    ),
    "adaptive on a part of the batch": (
        lambda: When(adaptive(), FriendlySAM(ascent_fraction=0.5)),
        "FriendlySAM with ascent_fraction=0.5 does not compute first",
    ),
    "no groups": (lambda: PerGroup(0, SAM()), "groups=0 is not allowed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        make()


def test_what_looks_alike_and_is_allowed() -> None:
    assert asks(When(adaptive(), MSAM(micro_batches=1)).method).starts_at_w
    for method in (
        When(adaptive(), SAM(), otherwise=ASAM()),
        When(every(2), ESAM(), otherwise=MSAM(micro_batches=2)),
        When(after(0.5), When(every(2), SAM())),
        PerGroup(2, When(every(2), ESAM())),
        PerGroup(2, PerGroup(3, SAM())),
    ):
        Run(method, batches=2)


# -- what the README shows ------------------------------------------------------------------------


def test_per_group_is_the_mean_of_the_method() -> None:
    bowl = Bowl()
    update = PerGroup(3, ASAM())(bowl.landscape(0))
    x, y = bowl.batch(0)
    parts = [
        ASAM()(bowl.landscape(0, n=6).select([torch.tensor([2 * g, 2 * g + 1])])) for g in range(3)
    ]
    assert len(x) == len(y) == 6
    for i in range(3):
        expected = sum(part[i] for part in parts) / 3  # type: ignore[misc]
        torch.testing.assert_close(update[i], expected, rtol=1e-12, atol=1e-15)


def friendly_sparse() -> Composed:
    return Composed(chain(minus_average(), radius(0.1), fisher_mask(0.5, 2, 3)))


SHOWN: dict[str, tuple[Callable[[], Method], list[float]]] = {
    "friendly and sparse": (friendly_sparse, [1.0] * 8),
    "late friendly": (lambda: When(after(0.75), FriendlySAM()), [0.0] * 6 + [1.0] * 2),
    "grouped asam": (lambda: PerGroup(4, ASAM()), [1.0] * 8),
    "sparse then esam": (
        lambda: When(before(0.5), friendly_sparse(), otherwise=ESAM()),
        [1.0] * 8,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "friendly and sparse",
        *(pytest.param(name, marks=pytest.mark.slow) for name in list(SHOWN)[1:]),
    ],
)
def test_it_trains_saves_and_resumes(name: str, tmp_path: Path) -> None:
    """Bit for bit, with all state; and the log has its description."""
    make, shares = SHOWN[name]
    common = {"dropout": 0.1, "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = train(tmp_path, sam_object=make(), **common)
    assert logged(whole, "sam/share_perturbed_updates") == shares
    assert all(math.isfinite(loss) for loss in logged(whole))
    resume = str(tmp_path / "checkpoint-3")
    again = train(tmp_path / "again", sam_object=make(), resume=resume, **common)
    assert_equal(weights(whole), weights(again))
    assert json.loads(json.dumps(whole.sam_config)) == whole.sam_config


def test_friendly_and_sparse_is_both(tmp_path: Path) -> None:
    trainer = train(tmp_path, sam_object=friendly_sparse(), max_steps=4)
    state = trainer._method.state_dict()
    n = sum(p.numel() for p in trainer.model.parameters())
    mask, average = state["ascent.parts.2.mask"], state["ascent.parts.0.average"]
    assert sum(int(m.sum()) for m in mask) == n // 2
    assert all(m is not None for m in average)
    assert all(0 < x < 0.1 for x in logged(trainer, "sam/perturbation_norm"))


# -- through Trainer ------------------------------------------------------------------------------


PLACES = itertools.cycle([["all"], ["norm"], ["no_norm"], ["no_embeddings"], ["classifier"]])
FREE = [key for key in KEYS if key not in SCHEDULED]


def some_schedules() -> Iterator[str]:
    """Yield a schedule for each free method: the one that was used longest ago and is allowed."""
    left = list(SCHEDULES)
    for key in FREE:
        when = next(when for when in left if not refusal(key, when))
        left.remove(when)
        left.append(when)
        yield when


DIAGONAL = [*zip(FREE, some_schedules(), PLACES, strict=False)]
DIAGONAL += [(key, "always", ["no_norm"]) for key in SCHEDULED]
DIAGONAL = [(k, w, ["lora_"] if ROWS[k].adapters else place) for k, w, place in DIAGONAL]
DIAGONAL = [(k, w, ["all"] if ROWS[k].head else place) for k, w, place in DIAGONAL]
WITHOUT = [(k, w) for k, w in PAIRS if refusal(k, w)]


@pytest.mark.parametrize(
    ("key", "when", "where"), DIAGONAL, ids=[named(k, w) for k, w, _ in DIAGONAL]
)
def test_methods_and_schedules_inside_trainer(
    key: str, when: str, where: list[str], tmp_path: Path
) -> None:
    trainer = train(
        tmp_path,
        model=ROWS[key].toy("bert"),
        dropout=0.1,
        sam=key,
        sam_when=when,
        sam_where=where,
        sam_options=OPTIONS.get(key),
        max_steps=STEPS,
        warmup_steps=WARMUP,
        seed=SEED,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    assert all(math.isfinite(loss) for loss in logged(trainer)) and len(logged(trainer)) == STEPS
    shares = logged(trainer, "sam/share_perturbed_updates")
    picks = SCHEDULES[SCHEDULED.get(key, when)][1]
    if picks is not None and key not in ("looksam", "flat_lora"):
        expected = without_first(key, [picks(t) for t in range(STEPS)])
        assert shares == [float(yes) for yes in expected]
    ever = picks is None or any(map(picks, range(STEPS)))
    assert (sum(shares) > 0) is ever


def test_the_diagonal_covers_all() -> None:
    assert {key for key, _, _ in DIAGONAL} == set(KEYS)
    assert {when for _, when, _ in DIAGONAL} == set(SCHEDULES)


@pytest.mark.parametrize(("key", "when"), WITHOUT, ids=[named(*p) for p in WITHOUT])
def test_trainer_refuses_what_the_arguments_refuse(key: str, when: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=refusal(key, when)):
        make_trainer(tmp_path, sam=key, sam_when=when, sam_options=OPTIONS.get(key))


FIELDS = {"RunningAverage", "MinusAverage", "AverageDirection", "FisherMask", "DynamicMask"}
"""What parts have in common with the methods of their papers."""


def test_the_parts_have_one_home() -> None:
    """`from hf_sam.parts import ...` finds every part but the two that share a name."""
    rooms = ("combine", "direction", "gates", "masks", "radius", "schedule", "when")
    homes = [importlib.import_module(f"hf_sam.parts.{room}") for room in rooms]
    found = {
        name
        for home in homes
        for name, value in vars(home).items()
        if isinstance(value, type) and issubclass(value, Part) and value.__module__ == home.__name__
    }
    assert found - {"linear", "Coin"} - FIELDS <= set(hf_sam.parts.__all__)
    assert all(getattr(hf_sam.parts, name) is not None for name in hf_sam.parts.__all__)
    assert issubclass(radius, hf_sam.parts.Direction), "the part, not the module of that name"
