# SPDX-License-Identifier: Apache-2.0
"""Models from a checkpoint, from a type with overrides, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, TimmWrapperConfig

from shared_scripts.arguments import InputError
from vision_scripts import fit, models
from vision_scripts.arguments import ModelArguments
from vision_scripts.networks import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    WideResNetConfig,
    WideResNetForImageClassification,
)

TINY: dict[str, dict[str, Any]] = {
    "cifar_resnet": {"depths": [1, 1], "hidden_sizes": [4, 8]},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
    "convnext": {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    "vit": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 4,
    },
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "patch_size": 2,
        "window_size": 2,
    },
}
TINY["deit"] = TINY["vit"]


def build(kind: str, size: int = 8, names: tuple[str, ...] = ("a", "b"), **more: Any) -> Any:
    args = ModelArguments(config_name=kind, config_overrides=TINY[kind], **more)
    torch.manual_seed(0)
    return models.load_model(args, models.load_config(args), names, size)


@pytest.mark.parametrize("kind", TINY)
def test_every_family_starts_from_scratch_and_comes_back(kind: str, tmp_path: Path) -> None:
    model = build(kind, names=("a", "b", "c")).eval()
    assert model.training is False and model.config.id2label == {0: "a", 1: "b", 2: "c"}
    images = torch.randn(2, 3, 8, 8)
    found = model(pixel_values=images, labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(found.logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found.loss, expected)
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    config = models.load_config(args)
    assert models.known_classes(args, config) == ("a", "b", "c")
    again = models.load_model(args, config, ("a", "b", "c"), 8).eval()
    torch.testing.assert_close(again(images).logits, found.logits)
    with pytest.raises(
        InputError,
        match="no model with 2 classes .* as its head has 3: --ignore_mismatched_sizes b",
    ):
        models.load_model(args, models.load_config(args), ("a", "b"), 8)
    other = ModelArguments(model_name_or_path=str(tmp_path), ignore_mismatched_sizes=True)
    assert models.load_model(other, models.load_config(other), ("a", "b"), 8)(images).logits.shape[
        1
    ] == len("ab")


def test_the_papers_networks_have_the_papers_sizes() -> None:
    with torch.device("meta"):
        resnet = CifarResNetForImageClassification(CifarResNetConfig(num_labels=10))
        wide = WideResNetForImageClassification(WideResNetConfig(num_labels=10))
    assert sum(p.numel() for p in resnet.parameters()) == 11_173_962
    assert sum(p.numel() for p in wide.parameters()) == 36_479_194
    sides = [layer.stride for layer in resnet.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert sides[0] == (1, 1) and sides.count((2, 2)) == 6  # three stages, each with its shortcut


def test_the_stem_keeps_the_image_whole() -> None:
    model = build("cifar_resnet")
    assert model.body(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)
    assert build("wide_resnet").body(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 8, 8)


def test_the_auto_classes_know_our_types() -> None:
    config = CifarResNetConfig(**TINY["cifar_resnet"])
    model = AutoModelForImageClassification.from_config(config)
    assert isinstance(model, CifarResNetForImageClassification)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "vit",
            {"hiden_size": 8},
            "ViTConfig has no such field .did you mean 'hidden_size'..\\. It has",
        ),
        ("vit", {"hidden_size": "x"}, "vit: no configuration can be made of it.*expected int"),
        ("vti", {}, "--config_name vti: no configuration can be .* .did you mean 'vit'"),
        ("wide_resnet", {"depth": 27}, "depth=27: a wide ResNet has 6 n . 4 layers"),
        ("cifar_resnet", {"depths": [1]}, "give one number per stage in both"),
        ("timm_wrapper", {"architecture": "resnet18"}, "need the packages timm and torchvision"),
    ],
)
def test_configurations_that_cannot_be(
    name: str, overrides: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "is_timm_available", lambda: False)
    with pytest.raises(InputError, match=message):
        models.load_config(ModelArguments(config_name=name, config_overrides=overrides))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"^--model_name_or_path {tmp_path}: no .* made of it .Unr"
    ):
        models.load_config(ModelArguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(InputError, match="give --config_name vit to train one from scratch"):
        models.load_config(ModelArguments(model_name_or_path="vit"))
    with pytest.raises(InputError, match="no model: give --model_name_or_path"):
        ModelArguments()
    with pytest.raises(InputError, match="--config_overrides='depth'.* is not NAME=VALUE"):
        ModelArguments(config_name="wide_resnet", config_overrides="depth")


def test_images_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"10 x 10 .* patches of 4 x 4: give --image_size 8 or 12"):
        build("vit", size=10)
    with pytest.raises(InputError, match="cannot read images of 2 x 2 pixels"):
        fit.try_model(build("convnext", size=2), 2, None)
    args = ModelArguments(config_name="vit", config_overrides=TINY["vit"] | {"num_channels": 1})
    assert models.load_model(args, models.load_config(args), ("a", "b"), 8).config.image_size == 8


def test_what_a_checkpoint_wants_of_its_images(tmp_path: Path) -> None:
    scratch = ModelArguments(config_name="vit", config_overrides={"patch_size": 4})
    assert models.preparation(scratch, models.load_config(scratch), None).size is None
    wanted = models.Preparation(12, [0.5, 0.6, 0.7], [0.1, 0.2, 0.3])
    wanted.processor().save_pretrained(tmp_path)
    build("vit", size=12).save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    config = models.load_config(args)
    assert models.preparation(args, config, None) == wanted
    assert models.preparation(args, config, 16).size == 16
    with pytest.raises(InputError, match="--image_processor_name .*none: cannot be loaded"):
        named = ModelArguments(config_name="vit", image_processor_name=str(tmp_path / "none"))
        models.preparation(named, config, None)
    timm = TimmWrapperConfig(
        pretrained_cfg={"input_size": [3, 14, 14], "mean": [0.5] * 3, "std": [0.2] * 3}
    )
    expected = models.Preparation(14, [0.5] * 3, [0.2] * 3)
    assert models.preparation(scratch, timm, None) == expected
    (tmp_path / "preprocessor_config.json").unlink()
    assert models.preparation(args, config, None) == models.Preparation(12)


@pytest.mark.parametrize(
    ("text", "channels", "found"),
    [
        ('{"image_mean": 0.5, "image_std": [0.2]}', 3, ([0.5] * 3, [0.2] * 3)),
        ('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}', 1, ([0.1], [1.0])),
        ('{"image_mean": [0.5], "do_normalize": false}', 3, (None, None)),
        ('{"image_mean": [0.5, 0.5], "image_std": [1, 1]}', 3, "image_mean=.* needs 3 numbers"),
        ('{"image_mean": 0.5, "image_std": [1, 0, 1]}', 3, "image_std=.1, 0, 1.; .* above 0"),
        ('{"image_mean": 0.5}', 3, "image_std=None"),
        ('{"image_mean": ', 3, "the image processor of .* cannot be loaded"),
        ("[]", 3, (None, None)),
    ],
)
def test_numbers_of_an_image_processor(
    text: str, channels: int, found: Any, tmp_path: Path
) -> None:
    build("vit").config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    own = {"num_channels": channels}
    args = ModelArguments(model_name_or_path=str(tmp_path), config_overrides=own)
    config = models.load_config(args)
    if isinstance(found, str):
        with pytest.raises(InputError, match=found):
            models.preparation(args, config, None)
    else:
        wanted = models.preparation(args, config, None)
        assert (wanted.mean, wanted.std) == found
