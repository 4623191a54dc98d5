# SPDX-License-Identifier: Apache-2.0
"""Tiny models from configs, seeded data for them, and a runner: what the tests train."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_sam import Landscape, Progress, SAMTrainer, SAMTrainingArguments, Vector
from hf_sam.landscape import HeadTap, Layer, Pair
from tests.cases import Case

Example = dict[str, Any]

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)
"""The argument's name, which transformers has changed."""


def bert(dropout: float = 0.0) -> torch.nn.Module:
    """A sequence classifier that ignores num_items_in_batch."""
    set_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def llama(dropout: float = 0.0) -> torch.nn.Module:
    """A causal language model that honours num_items_in_batch."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        attention_dropout=dropout,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def resnet(dropout: float = 0.0) -> torch.nn.Module:
    """An image classifier with batch norm."""
    set_seed(0)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=2,
    )
    return ResNetForImageClassification(config)


def t5(dropout: float = 0.0) -> torch.nn.Module:
    """A sequence-to-sequence model whose loss is a mean of token means."""
    set_seed(0)
    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def adapted(model: str, targets: list[str]) -> Callable[[float], torch.nn.Module]:
    """Return a function that builds a toy under a LoRA adapter of some of its linear layers."""

    def build(dropout: float = 0.0) -> torch.nn.Module:
        from peft import LoraConfig, get_peft_model

        task = "SEQ_CLS" if model == "bert" else None
        config = LoraConfig(task_type=task, r=2, target_modules=targets)
        return get_peft_model(MODELS[model](dropout), config)

    return build


lora = adapted("bert", ["query", "value"])


def tokenizer() -> Any:
    """A tokenizer of words `w0` to `w46`, for models of 50 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"w{i}" for i in range(47))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    "bert": bert,
    "llama": llama,
    "resnet": resnet,
    "t5": t5,
    "lora": lora,
    "lora_llama": adapted("llama", ["q_proj", "down_proj"]),
    "lora_resnet": adapted("resnet", ["classifier.1"]),
    "lora_t5": adapted("t5", ["q", "v"]),
}


def examples(model: str, n: int = 48, seed: int = 1) -> list[Example]:
    """Return n seeded examples for a model of `MODELS`, equally long but with ragged labels for
    llama.
    """
    draw, model = torch.Generator().manual_seed(seed), model.removeprefix("lora_")

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(1, 50, (length,), generator=draw)

    def one() -> Example:
        if model == "resnet":
            image = torch.randn(1, 16, 16, generator=draw, dtype=torch.float32)
            return {"pixel_values": image, "labels": int(torch.randint(0, 2, (1,), generator=draw))}
        if model == "llama":
            labels = tokens(10)
            labels[: int(torch.randint(0, 8, (1,), generator=draw))] = -100
            return {"input_ids": labels.clamp(min=1), "labels": labels}
        if model == "t5":
            return {"input_ids": tokens(10), "labels": tokens(6)}
        return {"input_ids": tokens(10), "labels": int(torch.randint(0, 2, (1,), generator=draw))}

    return [one() for _ in range(n)]


def make_trainer(
    folder: str | Path,
    *,
    model: str = "bert",
    cls: type[Trainer] = SAMTrainer,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    data: list[Example] | None = None,
    sam_object: Any = None,
    callbacks: list[Any] | None = None,
    compute_loss_func: Any = None,
    per_example_loss_func: Any = None,
    ascent_loss_func: Any = None,
    collator: Any = None,
    eval_data: list[Example] | None = None,
    built: torch.nn.Module | None = None,
    **arguments: Any,
) -> Trainer:
    """Return a trainer of `cls` on a toy; `arguments` go to its training arguments."""
    network = (built if built is not None else MODELS[model](dropout)).to(dtype)
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    plain = not issubclass(cls, SAMTrainer) and cls is Trainer
    kind = TrainingArguments if plain else SAMTrainingArguments
    ours = {"sam": sam_object, "per_example_loss_func": per_example_loss_func}
    if ascent_loss_func is not None:
        ours["ascent_loss_func"] = ascent_loss_func
    given = {} if plain else ours
    found = data if data is not None else examples(model)
    if dtype != torch.float32:
        found = [
            {
                k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in e.items()
            }
            for e in found
        ]
    return cls(
        model=network,
        args=kind(str(folder), **{**defaults, **arguments}),
        train_dataset=found,
        eval_dataset=eval_data,
        callbacks=callbacks,
        compute_loss_func=compute_loss_func,
        data_collator=collator,
        **given,
    )


def train(folder: str | Path, *, resume: str | None = None, **settings: Any) -> Trainer:
    """Return a trainer after training; see `make_trainer`."""
    trainer = make_trainer(folder, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@dataclass(frozen=True)
class Trained:
    """What a training left: copies, so that one training can serve many tests.

    Attributes:
        folder: where it saved.
        weights: of the model.
        buffers: of the model.
        optimizer: the optimizer's state.
        method: the method's state.
        random: the state of torch's generator.
        state: Trainer's own, with the logs.
    """

    folder: str
    weights: list[torch.Tensor]
    buffers: list[torch.Tensor]
    optimizer: dict[str, Any]
    method: dict[str, Any]
    random: torch.Tensor
    state: TrainerState


def as_left(trainer: Trainer) -> Trained:
    """Return what a training that has just ended left."""
    method = trainer._method.state_dict() if isinstance(trainer, SAMTrainer) else {}
    return Trained(
        folder=str(trainer.args.output_dir),
        weights=weights(trainer),
        buffers=[b.clone() for b in trainer.model.buffers()],
        optimizer=copy.deepcopy(trainer.optimizer.state_dict()),
        method=method,
        random=torch.get_rng_state(),
        state=trainer.state,
    )


@functools.cache
def trained(**settings: Any) -> Trained:
    """Train in a folder of its own, once per process for the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        return as_left(train(folder, **settings))


def weights(trainer: Trainer) -> list[torch.Tensor]:
    """Return copies of all weights."""
    return [p.detach().clone() for p in trainer.model.parameters()]


def logged(trainer: Trainer | Trained, key: str = "loss") -> list[float]:
    """Return what was logged under a key."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_equal(a: list[torch.Tensor], b: list[torch.Tensor], tolerance: float = 0.0) -> None:
    """Assert that two lists of tensors are equal, bit for bit or to an absolute tolerance."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if tolerance:
            torch.testing.assert_close(x, y, atol=tolerance, rtol=0.0)
        else:
            assert torch.equal(x, y), f"differs by {(x - y).abs().max().item():.3g}"


def assert_same(a: Any, b: Any) -> None:
    """Assert that two nested states are equal, their tensors bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[key] for key in a]
    if isinstance(a, (list, tuple, Vector)):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, (a, b)


class Bowl:
    """A small stochastic loss over several tensors, in float64: least squares through a tanh, for
    bare Landscapes.

    Attributes:
        params: the trainable tensors: two matrices, a vector, and one that has a gradient only if
            `optional`.
        passes: forward-backward passes so far.
        fail_at: the number of the pass that raises.
        drop_bias_at: that of the pass without the vector, which then has no gradient.
        zero_bias_at: that of the pass with zero times the vector, whose gradient is then zero.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, optional: bool = True) -> None:
        draw = torch.Generator().manual_seed(5)
        shapes = [(4, 6), (3, 4), (3,), (2, 2)]
        self.params = [
            torch.nn.Parameter(torch.randn(*s, generator=draw, dtype=torch.float64).to(dtype))
            for s in shapes
        ]
        self.names = ["first.weight", "second.weight", "second.bias", "unused.weight"]
        self.optional = optional
        self.dtype = dtype
        self.passes = 0
        self.fail_at: int | None = None
        self.drop_bias_at: int | None = None
        self.zero_bias_at: int | None = None

    def batch(self, step: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (n, 6) and targets (n, 3) of an update."""
        draw = torch.Generator().manual_seed(100 + step)
        x = torch.randn(n, 6, generator=draw, dtype=torch.float64).to(self.dtype)
        return x, torch.randn(n, 3, generator=draw, dtype=torch.float64).to(self.dtype)

    def losses(
        self,
        batch: tuple[torch.Tensor, torch.Tensor],
        share: Any = 1.0,
        head: HeadTap | None = None,
    ) -> torch.Tensor:
        """Return the per-example losses (n,); the second matrix is the output head."""
        x, y = batch
        hidden = self.hidden(x)
        out = hidden @ self.head_weight.T
        if self.passes != self.drop_bias_at:
            out = out + self.params[2] * float(self.passes != self.zero_bias_at)

        def losses_of(out: torch.Tensor) -> torch.Tensor:
            loss = (out - y).square().sum(1)
            return loss if self.optional else loss + self.params[3].square().sum()

        if head is not None:
            out = head(hidden, out, lambda out: losses_of(out).mean() * share)
        return losses_of(out)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the first layer makes of inputs (n, 6), (n, 4)."""
        return torch.tanh(x @ self.params[0].T)

    @property
    def head_weight(self) -> torch.Tensor:
        """The matrix of the second layer, (3, 4)."""
        return self.params[1]

    def backward(
        self,
        batch: Any,
        share: Any = 1.0,
        with_losses: bool = False,
        head: HeadTap | None = None,
    ) -> Any:
        """The Landscape's backward."""
        self.passes += 1
        losses = self.losses(batch, share, head)
        loss = losses.mean() * share
        loss.backward()
        if self.fail_at is not None and self.passes >= self.fail_at:
            raise RuntimeError("a pass failed")
        return (loss.detach(), losses.detach()) if with_losses else loss.detach()

    def per_example(self, batch: Any) -> torch.Tensor:
        """The Landscape's per_example."""
        with torch.no_grad():
            return self.losses(batch)

    def sample(self, n: int, generator: torch.Generator) -> list[Any]:
        """The Landscape's sample: n batches of one example."""
        drawn = torch.randint(1000, (n,), generator=generator).tolist()
        return [self.batch(1000 + i, 1) for i in drawn]

    def landscape(
        self, step: int = 0, total: int = 20, batches: int = 1, n: int = 6, **more: Any
    ) -> Landscape:
        """Return the Landscape of an update: its n examples in equal micro-batches."""
        x, y = self.batch(step, n)
        cut = list(zip(x.chunk(batches), y.chunk(batches), strict=True))
        settings: dict[str, Any] = {
            "progress": Progress(step, total, per_epoch=5, lr_ratio=1 - step / total),
            "seed": 7,
            "names": self.names,
            "per_example": self.per_example,
            "sample": self.sample,
            "layers": self.layers,
        }
        return Landscape(self.params, cut, self.backward, **{**settings, **more})

    layers: Any = None


class AdaptedBowl(Bowl):
    """The same loss with both layers frozen, and an adapter of rank 2 on the first one.

    Its parameters are A (2, 6), B (4, 2), the bias, and the one without a gradient. The learning
    rate of its updates is zero unless another one is given, for nobody steps an optimizer.
    """

    SCALE = 1.5

    def __init__(self, dtype: torch.dtype = torch.float64, optional: bool = True) -> None:
        super().__init__(dtype, optional)
        first, self.second = (p.detach() for p in self.params[:2])
        self.base = torch.nn.Linear(6, 4, bias=False, dtype=dtype)
        self.base.weight = torch.nn.Parameter(first, requires_grad=False)
        draw = torch.Generator().manual_seed(6)
        factors = [torch.randn(s, generator=draw, dtype=torch.float64) for s in ((2, 6), (4, 2))]
        self.params[:2] = [torch.nn.Parameter(f.to(dtype)) for f in factors]
        self.names[:2] = ["first.lora_A.weight", "first.lora_B.weight"]

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the adapted layer makes of inputs (n, 6), (n, 4)."""
        a, b = self.params[:2]
        return torch.tanh(self.base(x) + self.SCALE * (x @ a.T @ b.T))

    @property
    def head_weight(self) -> torch.Tensor:
        """The frozen matrix of the second layer, (3, 4)."""
        return self.second

    def layers(self) -> list[Layer]:
        """Return the layer with the adapter."""
        return [Layer("first", self.base, [Pair(a=0, b=1, scale=self.SCALE)])]

    def landscape(self, step: int = 0, total: int = 20, **more: Any) -> Landscape:  # type: ignore[override]
        """Return the Landscape of an update, as `Bowl` does."""
        progress = Progress(step=step, total=total, per_epoch=5, learning_rate=0.0)
        return super().landscape(step, total, **{"progress": progress, **more})


def bowl_for(case: Case, *given: Any, **more: Any) -> Bowl:
    """Return the toy for bare Landscapes on which a row of `cases.py` runs."""
    return (AdaptedBowl if case.adapters else Bowl)(*given, **more)
