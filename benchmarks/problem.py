# SPDX-License-Identifier: Apache-2.0
"""What is measured: a model and data that all rows train alike, real or drawn at random."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from benchmarks.rows import Row
from hf_sam import SAMTrainer, SAMTrainingArguments

FIXED_BATCHES = 4
LABELS = 2
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """How all rows train.

    Attributes:
        updates: of the whole run.
        batch_size: examples of a micro-batch on a process.
        learning_rate: of AdamW, linearly to zero.
        seed: of data, dropout and the methods.
        bf16: forward passes under autocast to bfloat16.
        fp16: to float16, with a GradScaler.
        use_cpu: even where there is a GPU.
        accumulation: micro-batches of an update.
        processes: that share the work.
    """

    updates: int
    batch_size: int
    learning_rate: float = 5e-5
    seed: int = 1
    bf16: bool = False
    fp16: bool = False
    use_cpu: bool = False
    accumulation: int = 1
    processes: int = 1

    @property
    def device(self) -> torch.device:
        """Where a single process computes."""
        cuda = torch.cuda.is_available() and not self.use_cpu
        return torch.device("cuda", 0) if cuda else torch.device("cpu")

    def examples(self, updates: int) -> int:
        """Return how many examples that many updates take, on all processes."""
        return updates * self.batch_size * self.accumulation * self.processes

    def arguments(self, folder: str, updates: int, **sam: Any) -> SAMTrainingArguments:
        """Return the arguments of a trainer that does nothing beside its updates."""
        return SAMTrainingArguments(
            folder,
            max_steps=updates,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulation,
            learning_rate=self.learning_rate,
            seed=self.seed,
            bf16=self.bf16,
            fp16=self.fp16,
            use_cpu=self.use_cpu,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=self.device.type == "cuda",
            ddp_find_unused_parameters=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **sam,
        )


@dataclass
class Problem:
    """What all rows train.

    Attributes:
        model: copied for every trainer.
        data: examples in the order of training: a data set, or a list.
        collate: makes a batch of a list of examples.
        training: how.
        folder: for whatever a trainer writes.
        plain: arguments for loops without a trainer; making some later would disturb trainers.
    """

    model: nn.Module
    data: Any
    collate: Callable[[Sequence[Any]], Inputs]
    training: Training
    folder: str
    plain: SAMTrainingArguments = field(init=False)

    def __post_init__(self) -> None:
        """Make the arguments before there is any trainer."""
        self.plain = self.training.arguments(self.folder, self.training.updates, sam="none")

    def copy_of_model(self) -> nn.Module:
        """Return a model of one's own, except for frozen weights, which all may share."""
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return copy.deepcopy(self.model, frozen)

    def trainer(self, row: Row, updates: int, **options: Any) -> SAMTrainer:
        """Return a new trainer of a row for the first `updates` updates."""
        sam = {"sam": row.key, "sam_options": row.options | options}
        trainer = SAMTrainer(
            model=self.copy_of_model(),
            args=self.training.arguments(self.folder, updates, **sam),
            train_dataset=first(self.data, self.training.examples(updates)),
            data_collator=self.collate,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    @torch.no_grad()
    def loss(self, trainer: SAMTrainer) -> float:
        """Return the loss on the first batches, without dropout."""
        size = self.training.batch_size
        batches = min(FIXED_BATCHES, self.training.updates)
        total = 0.0
        trainer.model.eval()
        for start in range(0, batches * size, size):
            batch = self.collate([self.data[i] for i in range(start, start + size)])
            total += float(trainer.model(**trainer._prepare_inputs(batch)).loss)
        trainer.model.train()
        return total / batches

    @property
    def parameters(self) -> dict[str, int]:
        """How many numbers are trained, their bytes (P), and those of the whole model."""
        weights = list(self.model.parameters())
        trained = [p for p in weights if p.requires_grad]
        everything = weights + list(self.model.buffers())
        return {
            "parameters": sum(p.numel() for p in trained),
            "parameter_bytes": sum(p.numel() * p.element_size() for p in trained),
            "model_bytes": sum(t.numel() * t.element_size() for t in everything),
        }


def first(data: Any, n: int) -> Any:
    """Return the first n examples of a data set or of a list."""
    return data.select(range(n)) if hasattr(data, "select") else data[:n]


@dataclass(frozen=True)
class Model:
    """A model with random weights, and batches for it.

    Attributes:
        build: returns the model, for inputs of a length.
        draw: returns a batch of n inputs of a length (tokens, or pixels of an edge).
    """

    build: Callable[[int], nn.Module]
    draw: Callable[[int, int], Inputs]


def _tokens(n: int, length: int) -> Inputs:
    ids = torch.randint(1000, 5000, (n, length))
    return {"input_ids": ids, "labels": torch.randint(0, LABELS, (n,))}


def _text(n: int, length: int) -> Inputs:
    ids = _tokens(n, length)["input_ids"]
    return {"input_ids": ids, "labels": ids}


def _images(n: int, length: int) -> Inputs:
    pixels = torch.randn(n, 3, length, length)
    return {"pixel_values": pixels, "labels": torch.randint(0, LABELS, (n,))}


def _bert(layers: int, width: int, heads: int, vocabulary: int = 30522) -> Model:
    def build(length: int) -> nn.Module:
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            num_labels=LABELS,
        )
        return BertForSequenceClassification(config)

    return Model(build, _tokens)


def _vit_s16(length: int) -> nn.Module:
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=length,
        patch_size=16,
        num_labels=LABELS,
    )
    return ViTForImageClassification(config)


def _resnet18(length: int) -> nn.Module:
    config = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        num_labels=LABELS,
    )
    return ResNetForImageClassification(config)


def _lora(layers: int, width: int, heads: int, vocabulary: int) -> Model:
    """Adapters of rank 8 on a decoder, which takes two heads for keys and values as Qwen2 does."""

    def build(length: int) -> nn.Module:
        from peft import LoraConfig, get_peft_model
        from transformers import Qwen2Config, Qwen2ForCausalLM

        config = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=38 * width // 7,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        adapters = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])
        return get_peft_model(Qwen2ForCausalLM(config), adapters)

    return Model(build, _text)


MODELS: dict[str, Model] = {
    "minilm": _bert(6, 384, 12),
    "bert-base": _bert(12, 768, 12),
    "vit-s16": Model(_vit_s16, _images),
    "resnet18": Model(_resnet18, _images),
    "lora-0.5b": _lora(24, 896, 14, vocabulary=151936),
    "lora-1m": _lora(2, 56, 2, vocabulary=5000),
    "bert-1m": _bert(2, 128, 2, vocabulary=5000),
    "bert-4m": _bert(2, 128, 2),
    "bert-11m": _bert(4, 256, 4),
    "bert-29m": _bert(4, 512, 8),
    "bert-335m": _bert(24, 1024, 16),
    "bert-1.3b": _bert(24, 2048, 32, vocabulary=50257),
}
"""Name -> what is measured. Only the shapes are the named models'."""


@dataclass(frozen=True)
class Batches:
    """A collator for numbered examples: hands out drawn batches in turn, so that it costs nothing.

    Attributes:
        made: the batches.
        size: examples in each.
    """

    made: Sequence[Inputs]
    size: int

    def __call__(self, numbers: Sequence[int]) -> Inputs:
        """Return the batch that begins with the first number."""
        return dict(self.made[numbers[0] // self.size % len(self.made)])


def drawn(name: str, length: int, training: Training, updates: int, folder: str) -> Problem:
    """Return a model of `MODELS` with random weights, and random data for `updates` updates."""
    set_seed(training.seed)
    model = MODELS[name]
    made = [model.draw(training.batch_size, length) for _ in range(FIXED_BATCHES)]
    numbers = list(range(training.examples(updates)))
    with training.device:  # drawing a billion weights on a CPU takes most of a minute
        built = model.build(length)
    return Problem(built, numbers, Batches(made, training.batch_size), training, folder)
