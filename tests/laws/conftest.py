# SPDX-License-Identifier: Apache-2.0
"""Both ways of walking over the weights, for tensors that are larger than a slice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_sam import sweeps
from hf_sam.sweeps import Policy, forced

SMALL = {"cached": Policy(64, eager=True), "grouped": Policy(192, eager=False)}
"""Slices of 8 and groups of 24 numbers in float64: smaller than a Bowl's tensors."""


@pytest.fixture(params=SMALL)
def walk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors larger than a slice, under each policy."""
    monkeypatch.setattr(sweeps, "CACHED", SMALL["cached"])
    with forced(SMALL[request.param]):
        yield
