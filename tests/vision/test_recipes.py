# SPDX-License-Identifier: Apache-2.0
"""Every recipe is a run that could start, with the published settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_sam import METHODS
from hf_sam.arguments import build_method, main_method
from hf_sam.parts.where import choose
from shared_scripts.arguments import InputError
from vision_scripts.arguments import RECIPES, Arguments, parse_arguments
from vision_scripts.models import load_config

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def parse(name: str, *words: str) -> Arguments:
    return parse_arguments(["--recipe", name, "--output_dir", "x", "--use_cpu", *words])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_gives_a_method_and_a_model(name: str) -> None:
    model, data, args = parse(name)
    assert (args.do_train, args.do_eval, data.recipe) == (True, True, name)
    assert main_method(build_method(args))[0] == args.sam
    assert name.split("-")[2] == args.sam
    with torch.device("meta"):
        built = AutoModelForImageClassification.from_config(load_config(model))
    weights = list(built.named_parameters())
    chosen = choose(args.sam_where, [p for _, p in weights], [n for n, _ in weights], built)
    assert any(chosen) and all(chosen) == (args.sam_where == ["all"])
    text = (RECIPES / f"{name}.yaml").read_text()
    assert text.startswith("# "), "says where its numbers come from"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_cifar(method: str) -> None:
    """Under its own recipe, or under the plain Trainer's, as a method without published numbers."""
    own = f"cifar10-resnet18-{method}"
    words = (own,) if own in NAMES else ("cifar10-resnet18-none", "--sam", method)
    assert parse(*words)[2].sam == method


def test_esams_table() -> None:
    for method, options in {
        "none": None,
        "sam": None,
        "esam": {"beta": 0.6, "gamma": 0.5},
    }.items():
        model, data, args = parse(f"cifar10-resnet18-{method}")
        assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (0.05, 1e-3, 200)
        assert (args.per_device_train_batch_size, args.lr_scheduler_type) == (128, "cosine")
        assert (args.optim, args.optim_args) == ("sgd", "momentum=0.9")
        assert (data.dataset_name, data.random_crop, data.random_flip) == ("uoft-cs/cifar10", 4, 1)
        assert (args.sam, args.sam_options) == (method, options)
        assert args.sam_rho == (None if method == "none" else "0.05")


def test_vit_is_perturbed_after_its_warm_up() -> None:
    model, _, args = parse("cifar10-vit_tiny-sam")
    assert (args.sam_when, args.optim, args.optim_args) == ("after_warmup", "adamw_torch", None)
    assert args.get_warmup_steps(9800) == 392  # 8 of 200 epochs
    assert (load_config(model).hidden_size, load_config(model).patch_size) == (192, 4)


def test_norm_layers_only() -> None:
    model, _, args = parse("cifar100-wrn28_10-sam-norm")
    with torch.device("meta"):
        built = AutoModelForImageClassification.from_config(load_config(model))
    names, weights = zip(*built.named_parameters(), strict=True)
    chosen: Any = choose(args.sam_where, list(weights), list(names), built)
    taken = {name for name, inside in zip(names, chosen, strict=True) if inside}
    assert len(taken) == 50 and all("norm" in n or n.startswith("body.13") for n in taken)


def test_flags_override_a_file_that_overrides_a_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"recipe": "cifar10-resnet18-esam", "seed": 5, "sam_rho": 0.2}))
    words = ["--output_dir", "x", "--use_cpu"]
    _, data, args = parse_arguments([str(own), *words, "--seed", "7", "--sam_options", "beta=1.0"])
    assert (data.recipe, args.seed, args.sam, args.sam_rho) == (
        "cifar10-resnet18-esam",
        7,
        "esam",
        "0.2",
    )
    assert (args.sam_options, args.learning_rate) == ({"beta": 1.0}, 0.05)
    other = parse_arguments([str(own), *words, "--recipe=cifar10-resnet18-sam"])[2]
    assert (other.sam, other.sam_rho) == ("sam", "0.2")


def test_what_is_no_recipe() -> None:
    with pytest.raises(InputError, match="no such recipe .did you mean 'cifar10-resnet18-sam'"):
        parse("cifar10-resnet18_sam")


def test_workers_are_not_needed(caplog: pytest.LogCaptureFixture) -> None:
    words = ("--dataloader_num_workers=2", "--dataloader_prefetch_factor=2")
    args = parse("cifar10-resnet18-sam", *words)[2]
    assert (args.dataloader_num_workers, args.dataloader_prefetch_factor) == (0, None)
    assert "--dataloader_num_workers 2: images are decoded once" in caplog.text
