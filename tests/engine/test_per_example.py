# SPDX-License-Identifier: Apache-2.0
"""The losses of single examples are those of batches of one, and their mean is the batch's loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    set_seed,
)

from hf_sam.host.losses import per_example_losses
from hf_sam.host.passes import Pass
from hf_sam.landscape.data import denominator, take
from tests.toys import examples, llama, make_trainer, resnet, t5

B = 5
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 32}


def bert(kind: type[nn.Module], **more: Any) -> nn.Module:
    set_seed(0)
    return kind(BertConfig(**SIZES, **more))


def llama_classifier(**more: Any) -> nn.Module:
    set_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, pad_token_id=0, **more))


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 50, shape)


def ragged(length: int, high: int) -> Tensor:
    """Labels with 0, 1, 2, ... leading positions left out; the last row has one label only."""
    labels = torch.randint(0, high, (B, length))
    for i in range(B):
        labels[i, : length - 1 if i == B - 1 else i] = -100
    return labels


Head = tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]
CLASSES = {"num_labels": 3}
HEADS: dict[str, Head] = {
    "single label": (
        lambda: bert(BertForSequenceClassification, **CLASSES),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.tensor([0, 1, 2, 2, 1])},
    ),
    "single label in a column": (
        lambda: bert(BertForSequenceClassification, **CLASSES),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.tensor([0, 1, 2, 2, 1]).view(B, 1)},
    ),
    "single label of a decoder": (
        lambda: llama_classifier(**CLASSES),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.tensor([0, 1, 2, 2, 1])},
    ),
    "multi-label": (
        lambda: bert(BertForSequenceClassification, **CLASSES),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randint(0, 2, (B, 3)).float()},
    ),
    "multi-label of a decoder": (
        lambda: llama_classifier(**CLASSES, problem_type="multi_label_classification"),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randint(0, 2, (B, 3)).float()},
    ),
    "regression": (
        lambda: bert(BertForSequenceClassification, num_labels=1),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randn(B)},
    ),
    "regression in a column": (
        lambda: bert(BertForSequenceClassification, num_labels=1),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randn(B, 1)},
    ),
    "regression to whole numbers": (
        lambda: bert(BertForSequenceClassification, num_labels=1),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.tensor([0, 1, 5, -3, 2])},
    ),
    "regression of a decoder": (
        lambda: llama_classifier(num_labels=1),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randn(B)},
    ),
    "regression of several numbers": (
        lambda: bert(BertForSequenceClassification, num_labels=3, problem_type="regression"),
        lambda: {"input_ids": tokens(B, 7), "labels": torch.randn(B, 3)},
    ),
    "images": (
        resnet,
        lambda: {
            "pixel_values": torch.randn(B, 1, 16, 16),
            "labels": torch.tensor([0, 1, 1, 0, 1]),
        },
    ),
    "multiple choice": (
        lambda: bert(BertForMultipleChoice),
        lambda: {"input_ids": tokens(B, 4, 7), "labels": torch.tensor([0, 3, 1, 2, 2])},
    ),
    "token classification": (
        lambda: bert(BertForTokenClassification, **CLASSES),
        lambda: {"input_ids": tokens(B, 7), "labels": ragged(7, 3)},
    ),
    "masked language model": (
        lambda: bert(BertForMaskedLM),
        lambda: {"input_ids": tokens(B, 7), "labels": ragged(7, 50)},
    ),
    "causal language model": (
        llama,
        lambda: {"input_ids": tokens(B, 9), "labels": ragged(9, 50)},
    ),
    "sequence to sequence": (
        t5,
        lambda: {"input_ids": tokens(B, 9), "labels": ragged(6, 50)},
    ),
}
every_head = pytest.mark.parametrize("head", HEADS)


def losses_of(trainer: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The batch's loss and the examples' losses, out of one forward of the trainer."""
    trainer._passes._pass = Pass(losses=[])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    found, trainer._passes._pass = trainer._passes._pass.losses, None
    assert len(found) == 1
    return loss.detach(), found[0]


def build(head: str, folder: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    model, data = HEADS[head]
    trainer = make_trainer(
        folder, built=model(), dtype=torch.float64, data=examples("bert", 8), **more
    )
    trainer.model.eval()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in data().items()}
    return trainer, batch


def check(trainer: Any, batch: dict[str, Any]) -> None:
    loss, losses = losses_of(trainer, batch)
    assert losses.shape == (B,) and not losses.requires_grad
    assert losses.std() > 1e-3, "the examples' losses differ"
    shifted = trainer._loss_shifts_labels
    rows = [take(batch, slice(i, i + 1)) for i in range(B)]
    weights = torch.tensor([float(denominator(row, shifted)) for row in rows])
    for row, heavy, one in zip(rows, weights, losses, strict=True):
        if heavy:
            # Language models compute their loss in float32, whatever the weights are in.
            torch.testing.assert_close(losses_of(trainer, row)[0], one.to(loss), rtol=0, atol=2e-6)
        else:
            assert one == 0, "nothing is labelled"
    mean = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(mean.to(loss), loss, rtol=0, atol=2e-6)


@every_head
def test_they_are_the_losses_of_batches_of_one(head: str, tmp_path: Path) -> None:
    check(*build(head, tmp_path))


@pytest.mark.parametrize(
    "head",
    [
        "single label",
        "single label of a decoder",
        "images",
        "multiple choice",
        "token classification",
        "causal language model",
        "sequence to sequence",
    ],
)
def test_under_label_smoothing_too(head: str, tmp_path: Path) -> None:
    plain, _ = build(head, tmp_path)
    smooth, batch = build(head, tmp_path, label_smoothing_factor=0.2)
    if head == "sequence to sequence":  # as its collator prepares them where labels are taken away
        batch["decoder_input_ids"] = batch["labels"].clamp(min=0)
    check(smooth, batch)
    assert not torch.allclose(losses_of(plain, batch)[1], losses_of(smooth, batch)[1])


def test_a_row_without_labels(tmp_path: Path) -> None:
    trainer, batch = build("causal language model", tmp_path)
    batch["labels"][2] = -100
    check(trainer, batch)


def test_in_half_precision_they_are_float32(tmp_path: Path) -> None:
    trainer, batch = build("single label", tmp_path)
    trainer.model.bfloat16()
    assert losses_of(trainer, batch)[1].dtype == torch.float32


def test_your_own(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return own(outputs, labels).mean()

    def own(outputs: Any, labels: Tensor) -> Tensor:
        return (outputs.logits.softmax(-1).gather(1, labels[:, None]).squeeze(1) - 1).square()

    check(*build("single label", tmp_path, compute_loss_func=loss, per_example_loss_func=own))


@pytest.mark.parametrize(
    "wrong", [lambda o, y: o.logits.mean(), lambda o, y: o.logits, lambda o, y: [1]]
)
def test_your_own_of_a_wrong_shape(wrong: Any, tmp_path: Path) -> None:
    trainer, batch = build("single label", tmp_path, per_example_loss_func=wrong)
    with pytest.raises(ValueError, match=r"per_example_loss_func returned .* shape \(B,\)"):
        losses_of(trainer, batch)


@pytest.mark.parametrize(
    ("logits", "labels", "kind"),
    [
        (torch.ones(3, 2), None, None),
        (None, torch.ones(3), None),
        (torch.ones(3, 4, 4, 2), torch.ones(3, 4, 4, dtype=torch.long), None),
        (torch.ones(3, 2), torch.ones(3, 2), None),
        (torch.ones(3, 2), torch.ones(3, 5), "regression"),
        (torch.ones(3, 2), torch.ones(3, 2), "single_label_classification"),
    ],
)
def test_an_unknown_loss_says_what_to_do(logits: Any, labels: Any, kind: str | None) -> None:
    config = BertConfig(problem_type=kind)
    with pytest.raises(
        ValueError, match="unknown for labels of .* and logits of .*per_example_loss_func"
    ):
        per_example_losses({"logits": logits}, labels, config)


def test_outputs_as_a_tuple() -> None:
    """With a loss before the logits, and without one (under label smoothing)."""
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    for outputs in ((torch.tensor(1.0), logits), (logits,), (logits, torch.ones(4, 7))):
        assert torch.equal(per_example_losses(outputs, labels, None), expected)


def positions_loss(outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The losses of question answering: there the function gets all inputs."""
    pairs = (("start_logits", "start_positions"), ("end_logits", "end_positions"))
    each = [
        nn.functional.cross_entropy(outputs[logits], inputs[name], reduction="none")
        for logits, name in pairs
    ]
    return (each[0] + each[1]) / 2


def test_a_head_that_has_no_labels(tmp_path: Path) -> None:
    """Question answering: refused before the model has run, unless the losses are given."""
    data = [{"input_ids": tokens(7), "start_positions": 1, "end_positions": 3} for _ in range(16)]
    common = {"data": data, "max_steps": 1, "sam": "esam"}
    model = bert(BertForQuestionAnswering)
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    words = "BertForQuestionAnswering takes start_positions, end_positions: .*all inputs if"
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, built=model, **common).train()
    handle.remove()
    make_trainer(tmp_path, built=model, sam_options="gamma=1", **common).train()
    make_trainer(tmp_path, built=model, per_example_loss_func=positions_loss, **common).train()


def test_a_loss_of_your_own_without_them_is_refused(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    settings = {"compute_loss_func": loss, "sam": "esam", "max_steps": 1}
    with pytest.raises(ValueError, match="ESAM compares.*compute_loss_func.*per_example_loss_func"):
        make_trainer(tmp_path, **settings).train()
    make_trainer(tmp_path, sam_options="gamma=1", **settings).train()
