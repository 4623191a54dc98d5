# SPDX-License-Identifier: Apache-2.0
"""One clear error before the first step, which names argument, value, what is allowed, and the
remedy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sam import METHODS, SAM, SAMTrainingArguments
from tests.toys import bert, make_trainer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sam": "esm"}, ["sam='esm'", "asam"]),
        ({"sam": "asamm"}, ["did you mean 'asam'"]),
        (
            {"sam": "sam", "sam_options": {"gamma": 0.5}},
            ["no option 'gamma'", "it has ascent_fraction"],
        ),
        ({"sam": "asam", "sam_options": "etta=0.5"}, ["no option 'etta'", "did you mean 'eta'"]),
        ({"sam": "asam", "sam_options": "eta"}, ["NAME=VALUE"]),
        ({"sam": "asam", "sam_options": "{eta"}, ["not valid JSON"]),
        ({"sam": "asam", "sam_options": "eta=-1"}, ["eta=-1", "from 0.0"]),
        ({"sam_rho": -0.1}, ["rho=-0.1", "from 0.0"]),
        ({"sam_rho": "nan"}, ["rho=nan", "finite"]),
        ({"sam_rho": "inf"}, ["rho=inf", "finite"]),
        ({"sam_rho": "linaer:1:2"}, ["'linaer' is unknown", "did you mean 'linear'"]),
        ({"sam_rho": "linear:1"}, ["linear:START:END"]),
        ({"sam_rho": "linear:a:b"}, ["linear:START:END"]),
        ({"sam_rho": "budget:-1:1"}, ["c=-1.0", "budget:C:RHO_MAX"]),
        ({"sam_rho": "budget:0.02"}, ["write budget:C:RHO_MAX", "without bound", "such as 0.1"]),
        ({"sam_rho": "loss:0.5"}, ["write loss:SIGMA:RHO_MAX[:ANNEAL]", "without bound"]),
        (
            {"sam": "head_sam", "sam_rho": "relative:0.1"},
            ["perturbs one: give the radius as a number"],
        ),
        ({"sam_when": "aftr:0.5"}, ["'aftr' is unknown", "did you mean 'after'"]),
        ({"sam_when": "after:1.5"}, ["start=1.5", "from 0.0 to 1.0"]),
        ({"sam_when": "every:0"}, ["k=0", "from 1"]),
        ({"sam_when": "every:1.5"}, ["k=1.5", "whole"]),
        ({"sam_when": "random:constnt:0.5"}, ["did you mean 'constant'"]),
        ({"sam_when": "between:0.2"}, ["between:START:END"]),
        (
            {"sam": "looksam", "sam_ascent_sync": "local"},
            ["sam_ascent_sync='local'", "looksam", "'auto' or 'global'"],
        ),
        ({"sam": "msam", "sam_accumulation": "micro"}, ["sam_accumulation='micro'", "window"]),
        ({"sam": "looksam", "sam_accumulation": "micro"}, ["LookSAM carries state", "window"]),
        ({"sam": "late_sam", "sam_when": "every:2"}, ["second schedule", "sam_when"]),
        ({"sam": "esam", "sam_when": "adaptive"}, ["'adaptive'", "every:2"]),
        ({"sam": "esam", "sam_options": "beta=0"}, ["beta=0", "from 0.01 to 1"]),
        ({"sam": "ssam_f", "sam_options": "pattern=4:2"}, ["pattern='4:2'", "2:4"]),
        ({"sam": "ssam_f", "sam_options": "pattern=1:4"}, ["sparsity 0.75"]),
        ({"sam": "ssam_d", "sam_options": "drop=grad"}, ["did you mean 'gradient'"]),
        ({"sam_accumulation": "windows"}, ["did you mean 'window'"]),
        ({"sam_ascent_sync": "globl"}, ["did you mean 'global'"]),
    ],
)
def test_arguments(arguments: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    """Refused when the arguments are built: before a model is loaded."""
    with pytest.raises(ValueError) as caught:
        SAMTrainingArguments(str(tmp_path), use_cpu=True, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_an_object_with_options_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would be ignored"):
        make_trainer(tmp_path, sam_object=SAM(rho=0.1), sam_rho=0.2)


def test_something_that_is_no_method(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="neither a key of METHODS nor a method object"):
        make_trainer(tmp_path, sam_object=SAM)


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no trainable parameter.*bert.embeddings"):
        make_trainer(tmp_path, sam_where=[r"decoder\."]).train()
    with pytest.raises(ValueError, match="regular expression"):
        make_trainer(tmp_path, sam_where=["("]).train()
    with pytest.raises(ValueError, match=r"'nrom' matches .*did you mean 'norm'"):
        make_trainer(tmp_path, sam_where=["nrom"]).train()


def test_a_model_without_trainable_parameters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_trainer(tmp_path, built=bert().requires_grad_(False))


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_update_inside_backward(optim: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"optim='{optim}'.*inside backward"):
        make_trainer(tmp_path, optim=optim, optim_target_modules=["query"])


def test_an_optimizer_that_wants_a_closure(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.optimizer = torch.optim.LBFGS(trainer.model.parameters())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match="LBFGS.*closure"):
        trainer.train()
    assert all(torch.equal(p, b) for p, b in zip(trainer.model.parameters(), before, strict=True))


def test_every_field_has_help() -> None:
    for key, method in METHODS.items():
        for field in dataclasses.fields(method):
            name = field.name
            assert field.metadata.get("help"), f"{key}.{name}"
    for name, field in SAMTrainingArguments.__dataclass_fields__.items():
        if name.startswith("sam"):
            assert field.metadata.get("help"), name
