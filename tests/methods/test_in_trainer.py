# SPDX-License-Identifier: Apache-2.0
"""Schedules that methods bring along, inside Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
        assert "picks none of its 4 updates" in messages[0]
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
        ("stable_sam", "gamma=1", "no option 'gamma'"),
    ],
)
def test_bad_options(key: str, options: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        SAMTrainingArguments(str(tmp_path), use_cpu=True, sam=key, sam_options=options)
    assert words in str(caught.value)
