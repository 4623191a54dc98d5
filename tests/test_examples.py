# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run, and the classes that people use have one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import hf_sam
from hf_sam import Composed, Data, Landscape, PerGroup, SAMMixin, SAMTrainer, Vector, When
from hf_sam.sharpness import sharpness
from tests.toys import make_trainer

MODULES = [name for _, name, _ in pkgutil.walk_packages(hf_sam.__path__, "hf_sam.")]
WITH_EXAMPLE = [
    Data,
    Composed,
    Landscape,
    PerGroup,
    SAMMixin,
    SAMTrainer,
    Vector,
    When,
    sharpness,
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_examples_run(tmp_path: Path) -> None:
    make_trainer(tmp_path)  # so that what libraries print at their first use is no example's
    tried = 0
    for name in MODULES:
        module = importlib.import_module(name)
        found = doctest.testmod(module)
        assert found.failed == 0, f"an example in {name} prints something else"
        tried += found.attempted
    assert tried > 30


@pytest.mark.parametrize("thing", WITH_EXAMPLE, ids=lambda thing: thing.__name__)
def test_people_see_an_example(thing: type) -> None:
    assert ">>> " in (thing.__doc__ or "")
