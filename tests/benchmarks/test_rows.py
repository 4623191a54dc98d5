# SPDX-License-Identifier: Apache-2.0
import pytest

from benchmarks.rows import TARGETS, Work, parse_rows, predicted
from hf_sam import METHODS


def test_default_rows_are_all_methods() -> None:
    rows = parse_rows(",".join(TARGETS))
    assert {row.key for row in rows} == set(METHODS)
    assert [row.text for row in rows] == list(TARGETS)


def test_commas_separate_rows_and_options() -> None:
    rows = parse_rows("none,ss_sam:schedule=constant,p_start=0.5,looksam:k=3")
    assert [(row.key, row.options) for row in rows] == [
        ("none", {}),
        ("ss_sam", {"schedule": "constant", "p_start": 0.5}),
        ("looksam", {"k": 3}),
    ]
    assert rows[2].method.describe()["k"] == 3


def test_only_masks_renew() -> None:
    assert {row.text for row in parse_rows(",".join(TARGETS)) if row.renews} == {"ssam_f", "ssam_d"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sam,asam", "add `none`"),
        ("none,sam,sam", "'sam' twice"),
        ("none,lookSam", "did you mean 'looksam'"),
        ("none,sam:ascent_fractoin=0.25", "did you mean 'ascent_fraction'"),
        ("none,looksam:k=0", "k=0 is not allowed"),
    ],
)
def test_bad_rows_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_rows(text)


@pytest.mark.parametrize(
    ("text", "work"),
    [
        ("none", Work(1, 1, 1)),
        ("sam", Work(2, 2, 2)),
        ("msam", Work(2, 2, 2)),
        ("sam:ascent_fraction=0.25", Work(1.25, 1.25, 1.25)),
        ("looksam", Work(1.2, 1.2, 1.2)),
        ("late_sam", Work(1.25, 1.25, 1.25)),
        ("ss_sam:schedule=constant,p_start=0.5", Work(1.5, 1.5, 1.5)),
        ("bilateral_sam", Work(3, 3, 3)),
        ("esam", Work(2.5, 1.5, 1.7)),
        ("esam:gamma=1", Work(2, 2, 5.6 / 3)),
    ],
)
def test_work_follows_from_the_definition(text: str, work: Work) -> None:
    found = predicted(parse_rows(f"none,{text}" if text != "none" else text)[-1].method, 16)
    assert (found.forwards, found.backwards, found.time) == pytest.approx((
        work.forwards,
        work.backwards,
        work.time,
    ))
