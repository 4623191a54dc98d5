# SPDX-License-Identifier: Apache-2.0
"""What an estimate needs to know of the benchmark's methods and models, each counted once."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch

from benchmarks.problem import MODELS
from hf_sam.arguments import by_name, parse_options
from hf_sam.estimate import rehearsal
from hf_sam.estimate.work import flops_of

CORE = 2.3
"""FLOPs that the measured core computes while it moves a byte, the only number that is fitted."""


def passes_of(sam: str, options: dict[str, Any], batch: int) -> rehearsal.Passes:
    """Return what a mean update of a method computes and moves."""
    return _passes_of(sam, json.dumps(options), batch)


@functools.cache
def _passes_of(sam: str, options: str, batch: int) -> rehearsal.Passes:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rehearsal, "UPDATES", 40)
        return rehearsal.passes(by_name(sam, None, parse_options(options)), batch)


@functools.cache
def flops_and_weights(name: str, examples: int, length: int) -> tuple[float, int]:
    """Return the FLOPs of a forward of a model of the benchmark, and how many weights it has."""
    with torch.device("meta"):
        model = MODELS[name].build(length)
    model.config.image_size = length
    return flops_of(model, examples, length), sum(p.numel() for p in model.parameters())
