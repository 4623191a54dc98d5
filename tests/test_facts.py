# SPDX-License-Identifier: Apache-2.0
"""What a method says of itself is what it does, and what every table repeats."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from benchmarks.rows import predicted
from hf_sam import METHODS, Method, pages
from hf_sam.methods import asks
from tests.cases import CASES, Case
from tests.references import REFERENCES

ROOT = Path(__file__).parents[1]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_key = pytest.mark.parametrize("key", METHODS)


def number_in(text: str) -> float:
    """The number in brackets, or the first one."""
    found = re.search(r"\(([\d.]+)\)", text) or re.search(r"([\d.]+)", text)
    assert found, text
    return float(found[1].rstrip("."))


def test_every_method_has_its_row_and_its_reference() -> None:
    assert [case.key for case in CASES] == [key for key in METHODS if key != "none"], (
        "write a row in tests/cases.py for each method, in the order of METHODS"
    )
    assert set(REFERENCES) == set(METHODS) - {"none"}, "write tests/references/KEY.py"


@every_key
def test_passes_are_those_that_it_makes(key: str) -> None:
    kind = METHODS[key]
    assert asks(kind()).passes == pytest.approx(number_in(kind.passes), rel=0.1)


@every_key
def test_benchmarks_predict_those_passes(key: str) -> None:
    method = METHODS[key]()
    assert predicted(method, 1024).backwards == pytest.approx(asks(method).passes, rel=0.1)


@every_key
def test_a_default_radius_has_advice_for_pretrained_weights(key: str) -> None:
    """`pretrained_rho` is said, if it is None too, wherever a number stands as a large radius."""
    kind = METHODS[key]
    if isinstance(getattr(kind(), "rho", None), float):
        assert any("pretrained_rho" in vars(c) for c in kind.__mro__ if c is not Method)


@every_case
def test_memory_is_that_of_its_row(case: Case) -> None:
    assert number_in(METHODS[case.key].memory.split(",")[0]) == case.extra_p


@every_case
def test_state_is_declared(case: Case) -> None:
    """What `stateful` says, the laws of `test_bare.py` compare with the state itself."""
    assert METHODS[case.key]().keeps_state == case.stateful


@every_case
def test_local_ascent_is_right(case: Case) -> None:
    """The flags that are declared agree with each other."""
    method = METHODS[case.key]()
    assert method.local_ascent == (not method.keeps_state and not method.needs_here)
    assert asks(method).losses == case.per_example
    assert asks(method).layers == case.adapters


def test_the_page_of_methods_is_up_to_date() -> None:
    page = (ROOT / "docs/methods/index.md").read_text()
    assert page == pages.methods_page(), "run: python -m hf_sam.pages > docs/methods/index.md"


def test_the_changelog_names_every_method() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert not [key for key in METHODS if f"`{key}`" not in text]


@every_key
def test_a_method_lives_in_a_file_of_its_key(key: str) -> None:
    home = Path(inspect.getfile(METHODS[key])).stem
    assert home == ("plain" if key == "none" else key)


def test_a_method_is_public_by_its_row_alone() -> None:
    import hf_sam

    assert {kind.__name__ for kind in METHODS.values()} <= set(hf_sam.__all__)
    assert all(issubclass(getattr(hf_sam, k.__name__), Method) for k in METHODS.values())
