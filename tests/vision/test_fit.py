# SPDX-License-Identifier: Apache-2.0
"""What does not fit is one line before the first update: sizes, channels, heads, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, ViTModel

from shared_scripts.arguments import InputError
from tests.vision.test_models import TINY, build
from vision_scripts import fit, models
from vision_scripts.arguments import ModelArguments

CHANNELS = {"num_channels": 1}


@pytest.mark.parametrize("kind", TINY)
def test_every_family_is_tried_and_left_as_it_was(kind: str, tmp_path: Path) -> None:
    model = build(kind).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    fit.try_model(model, 8, batch=4)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), config_overrides=CHANNELS)
    with pytest.raises(InputError, match="1 of its weights have another shape .* leave out --conf"):
        models.load_model(args, models.load_config(args), ("a", "b"), 8)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_checkpoint_of_one_size(kind: str) -> None:
    with pytest.raises(InputError, match="images of 16 x 16 .* and 3 channels.*--image_size 8$"):
        fit.try_model(build(kind), 16, batch=4)


@pytest.mark.parametrize("kind", ["cifar_resnet", "wide_resnet", "resnet"])
def test_a_last_batch_of_one_image_has_no_batch_statistics(kind: str) -> None:
    for fitting in (2, None):
        fit.try_model(build(kind), 2, batch=fitting)
    with pytest.raises(InputError, match="batch of 1: Expected more .* --dataloader_drop_last"):
        fit.try_model(build(kind), 2, batch=1)


def test_a_head_of_another_kind() -> None:
    model = build("vit")
    model.classifier = torch.nn.Linear(8, 5)
    model.config.num_labels = 5
    fit.try_model(model, 8, batch=2)
    model.config.num_labels = 4
    with pytest.raises(InputError, match=r"outputs of shape \(1, 5\) for 1 images of 4 classes"):
        fit.try_model(model, 8, batch=None)


@pytest.mark.parametrize(
    ("images", "drop", "processes", "found"),
    [(17, False, 1, 1), (16, False, 1, 8), (3, False, 1, 3), (17, True, 1, 8), (17, False, 2, 8)],
)
def test_the_smallest_batch(images: int, drop: bool, processes: int, found: int) -> None:
    args: Any = SimpleNamespace(train_batch_size=8, dataloader_drop_last=drop, world_size=processes)
    assert fit.smallest_batch(args, images) == found


def test_no_batch_at_all() -> None:
    args: Any = SimpleNamespace(train_batch_size=8, dataloader_drop_last=True, world_size=2)
    with pytest.raises(InputError, match="--dataloader_drop_last: the 15 .* no whole batch of 16"):
        fit.smallest_batch(args, 15)


def load(folder: Path, training: bool = True, **more: Any) -> Any:
    args = ModelArguments(model_name_or_path=str(folder), **more)
    return models.load_model(args, models.load_config(args), ("a", "b"), 8, training)


def test_a_checkpoint_without_a_head_is_trained_and_not_evaluated(tmp_path: Path) -> None:
    ViTModel(build("vit").config).save_pretrained(tmp_path)
    assert load(tmp_path).config.id2label == {0: "a", 1: "b"}
    with pytest.raises(InputError, match="is no checkpoint of ViTFor.* lacks 2 weights.*random"):
        load(tmp_path, training=False)


def test_weights_of_sixteen_bits_are_trained_in_full(tmp_path: Path) -> None:
    build("vit").to(torch.bfloat16).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    fit.try_model(model, 8, batch=2)


def test_what_is_no_checkpoint_of_images(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="no model with 2 classes .* Unrecognized") as refused:
        load(tmp_path / "text")
    assert len(str(refused.value)) < 500
    build("vit").config.save_pretrained(tmp_path / "other")
    (tmp_path / "text" / "model.safetensors").rename(tmp_path / "other" / "model.safetensors")
    with pytest.raises(InputError, match="is no checkpoint of ViTForImageClassification: it lacks"):
        load(tmp_path / "other", ignore_mismatched_sizes=True)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no model with 2 classes .* SafetensorError"):
        load(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no model with 2 classes .* no file named"):
        load(tmp_path / "other")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    build("vit").save_pretrained(tmp_path)
    models.Preparation(8, [0.5] * 3, [0.5] * 3).processor().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "size", "overrides", "message"),
    [
        (("a", "b", "c"), 8, {}, "on the classes a, b, in this order, and this run has a, b, c"),
        (("b", "a"), 8, {}, "on the classes a, b, in this order, and this run has b, a"),
        (("a", "b"), 16, {}, "on images of 8 x 8 .* have 16 x 16: give --image_size 8"),
        (
            ("a", "b"),
            8,
            CHANNELS,
            r"projection.weight has shape .8, 3, 4, 4., this run's shape .8, 1",
        ),
        (("a", "b"), 8, {"num_hidden_layers": 0}, "layers.0.* this run's no such weights"),
    ],
)
def test_what_cannot_be_resumed(
    names: tuple[str, ...], size: int, overrides: Any, message: str, checkpoint: Path
) -> None:
    args = ModelArguments(config_name="vit", config_overrides=TINY["vit"] | overrides)
    model = models.load_model(args, models.load_config(args), names, size)
    with pytest.raises(InputError, match=f"^--resume_from_checkpoint {checkpoint}: .*{message}"):
        fit.check_resumed(model, str(checkpoint), names, size)


def test_what_can_be_resumed_and_what_is_broken(checkpoint: Path) -> None:
    model = build("vit")
    fit.check_resumed(model, str(checkpoint), ("a", "b"), 8)
    (checkpoint / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="model.safetensors: cannot be read as a checkpoint"):
        fit.check_resumed(model, str(checkpoint), ("a", "b"), 8)
    (checkpoint / "config.json").write_text(json.dumps([1])[:-1])
    with pytest.raises(InputError, match="config.json: cannot be read as JSON"):
        fit.check_resumed(model, str(checkpoint), ("a", "b"), 8)
    for path in checkpoint.iterdir():
        path.unlink()
    fit.check_resumed(model, str(checkpoint), ("a", "b"), 8)  # Trainer says that it is empty
