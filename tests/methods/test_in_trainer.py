# SPDX-License-Identifier: Apache-2.0
"""Schedules that methods bring along, inside Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_sam import SAM, LateSAM, SAMTrainingArguments, When
from hf_sam.arguments import build_method
from hf_sam.parts.when import after
from tests.toys import assert_equal, logged, make_trainer, train, weights

NEVER = "SAM never starts in this run"


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"sam": "late_sam", "sam_options": "start=0.9"}, True),
        ({"sam": "late_sam", "sam_options": "start=0.75"}, False),
        ({"sam": "late_sam", "sam_options": "start=1", "sam_accumulation": "micro"}, True),
        ({"sam": "ss_sam", "sam_options": "schedule=constant"}, True),
        ({"sam": "ss_sam"}, False),
        ({"sam": "sam", "sam_when": "after_warmup", "warmup_steps": 4}, True),
        ({"sam": "tail_sam", "lr_scheduler_type": "constant"}, True),
        ({"sam": "tail_sam", "lr_scheduler_type": "cosine"}, False),
        ({"sam": "sam", "sam_when": "decay", "lr_scheduler_type": "constant"}, True),
        ({"sam": "friendly_sam", "sam_when": "between:0.1:0.2"}, True),
        ({"sam": "sam"}, False),
        ({"sam": "none"}, False),
    ],
)
def test_a_run_in_which_sam_never_starts_says_so(
    settings: dict[str, Any], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = train(tmp_path, max_steps=4, **settings)
    messages = [r.getMessage() for r in caplog.records if NEVER in r.getMessage()]
    assert len(messages) == warned
    if warned:
        assert "picks no update" in messages[0]
        assert set(logged(trainer, "sam/share_perturbed_updates")) == {0.0}


@pytest.mark.parametrize("key", ["late_sam", "ss_sam"])
@pytest.mark.parametrize("accumulation", ["window", "micro"])
def test_two_schedules_are_refused(key: str, accumulation: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sam_when='every:2' would be a second schedule") as caught:
        SAMTrainingArguments(
            str(tmp_path),
            use_cpu=True,
            sam=key,
            sam_when="every:2",
            sam_accumulation=accumulation,
        )
    assert "leave sam_when at 'always'" in str(caught.value)


def test_an_object_with_a_schedule_is_refused_too(tmp_path: Path) -> None:
    arguments = {"sam_when": "every:2", "use_cpu": True}
    for method in (LateSAM(), When(after(0.5), SAM())):
        with pytest.raises(ValueError, match="second schedule"):
            make_trainer(tmp_path, sam_object=method, **arguments)


class Rates(TrainerCallback):
    """Records the learning rate of each update."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any):
        self.found.append(optimizer.param_groups[0]["lr"])


STABLE = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2}
STABLE |= {"lr_scheduler_kwargs": {"num_decay_steps": 3}}


@pytest.mark.parametrize(
    ("rates", "starts"),
    [
        (STABLE, 8),
        ({"warmup_steps": 2}, 3),
        ({"lr_scheduler_type": "cosine"}, 1),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, 10),
        ({"lr_scheduler_type": "polynomial", "warmup_steps": 5}, 6),
    ],
)
def test_tail_sam_begins_with_the_decay(rates: dict[str, Any], starts: int, tmp_path: Path) -> None:
    """Bit for bit the plain Trainer before, and with a radius in proportion after it."""
    common = {"max_steps": 10, "dropout": 0.1, **rates}
    plain = train(tmp_path, sam="none", **common)
    rates_seen = Rates()
    tail = train(tmp_path, sam="tail_sam", callbacks=[rates_seen], **common)
    assert logged(tail, "sam/share_perturbed_updates") == [float(t >= starts) for t in range(10)]
    assert logged(tail, "loss")[:starts] == logged(plain, "loss")[:starts]
    assert logged(tail, "grad_norm")[:starts] == logged(plain, "grad_norm")[:starts]
    shares = [rate / 1e-2 for rate in rates_seen.found[starts:]]
    assert logged(tail, "sam/perturbation_norm") == pytest.approx([0.01 * x for x in shares])


def test_a_schedule_of_the_users_own_warms_up_unknown_to_the_arguments(tmp_path: Path) -> None:
    seen = Rates()
    trainer = make_trainer(tmp_path, max_steps=10, sam_when="decay", callbacks=[seen])
    optimizer = torch.optim.AdamW(trainer.model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=11)
    trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
    trainer.train()
    shares = logged(trainer, "sam/share_perturbed_updates")
    # The schedule passes its maximum between two updates.
    peak = max(range(10), key=seen.found.__getitem__)
    assert shares == [float(t >= peak) for t in range(10)] and peak > 1


def test_a_tail_in_the_middle_of_a_decay_is_told_what_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, max_steps=10, sam="late_sam")
    train(tmp_path, max_steps=10, sam="late_sam", lr_scheduler_type="constant")
    said = [r.getMessage() for r in caplog.records if "has fallen to" in r.getMessage()]
    assert len(said) == 1 and "30% of its maximum" in said[0]


def test_late_sam_is_sam_under_after(tmp_path: Path) -> None:
    late = train(tmp_path, max_steps=6, sam="late_sam", sam_options="start=0.5", sam_rho=0.3)
    when = train(tmp_path, max_steps=6, sam="sam", sam_when="after:0.5", sam_rho=0.3)
    assert_equal(weights(late), weights(when))
    assert logged(late, "sam/share_perturbed_updates") == [0.0] * 3 + [1.0] * 3


def test_ss_sam_is_sam_under_a_coin(tmp_path: Path) -> None:
    options = "schedule=trigonometric,p_start=0.3,p_end=0.9"
    ours = train(tmp_path, max_steps=8, sam="ss_sam", sam_options=options, sam_rho=0.3)
    when = train(tmp_path, max_steps=8, sam_when="random:trigonometric:0.3:0.9", sam_rho=0.3)
    assert_equal(weights(ours), weights(when))
    shares = logged(ours, "sam/share_perturbed_updates")
    assert shares == logged(when, "sam/share_perturbed_updates") and len(set(shares)) == 2


def test_texts_reach_every_option(tmp_path: Path) -> None:
    args = SAMTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        sam="looksam",
        sam_rho="linear:0.1:0.02",
        sam_options="k=3,alpha=0.7,layerwise=trust",
    )
    described = build_method(args).describe()
    assert (described["k"], described["alpha"], described["layerwise"]) == (3, 0.7, "trust")
    assert described["rho"] == {"name": "linear", "start": 0.1, "end": 0.02}


@pytest.mark.parametrize(
    ("key", "options", "words"),
    [
        ("looksam", "k=0", "k=0 is not allowed; give a finite number from 1, a whole number"),
        ("looksam", "layerwise=trus", "did you mean 'trust'"),
        ("friendly_sam", "decay=1.5", "decay=1.5 is not allowed; give a finite number from 0"),
        ("bilateral_sam", "rho_max=1", "did you mean 'rho_min'"),
        ("rsam", "sigma=-1", "sigma=-1 is not allowed"),
        ("ss_sam", "schedule=linaer", "did you mean 'linear'"),
        ("ss_sam", "p_end=2", "p_end=2 is not allowed"),
        ("late_sam", "start=2", "start=2 is not allowed"),
        ("tail_sam", "start=2", "start=2 is not allowed"),
        ("tail_sam", "start=dekay", "nor a number (did you mean 'decay'?)"),
        ("stable_sam", "gamma=1", "no option 'gamma'"),
    ],
)
def test_bad_options(key: str, options: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        SAMTrainingArguments(str(tmp_path), use_cpu=True, sam=key, sam_options=options)
    assert words in str(caught.value)
