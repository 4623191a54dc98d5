# SPDX-License-Identifier: Apache-2.0
"""Set-ups of models for text, and of adapters and trainers around them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, set_seed

from .setup import (
    VOCABULARY,
    SetUp,
    full_sentence,
    masked_sentence,
    number,
    sentence,
    tags,
    text,
    text_with,
    tokens,
    translation,
)

SIZE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SIZE, **ENDS, "num_key_value_heads": 1}
MODERN = {**SIZE, **ENDS, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
SEVERAL = text_with(lambda draw: torch.randint(0, 2, (4,), generator=draw).float())
MULTI_LABEL = {"num_labels": 4, "problem_type": "multi_label_classification"}
MOE = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}


def encoder(name: str, **more: Any) -> Any:
    """A model whose configuration speaks of dropout as BERT's does."""

    def build(dropout: float) -> nn.Module:
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return built(name, **{**SIZE, **rates, "num_labels": 3, **more})

    return build


def decoder(name: str, **more: Any) -> Any:
    return lambda dropout: built(name, **{**DECODER, "attention_dropout": dropout, **more})


def modern(name: str, **more: Any) -> Any:
    def build(dropout: float) -> nn.Module:
        parts = ("attention", "mlp", "embedding", "classifier")
        return built(name, **MODERN, **{f"{part}_dropout": dropout for part in parts}, **more)

    return build


def built(name: str, **sizes: Any) -> nn.Module:
    kind = getattr(hf, name)
    return kind(kind.config_class(**sizes))


def distilbert(dropout: float) -> nn.Module:
    rates = dict.fromkeys(("dropout", "attention_dropout", "qa_dropout"), dropout)
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return built("DistilBertForQuestionAnswering", **sizes, max_position_embeddings=40, **rates)


def gpt2(dropout: float) -> nn.Module:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    return built("GPT2LMHeadModel", **sizes, bos_token_id=1, eos_token_id=2, **rates)


def mamba(dropout: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return built("MambaForCausalLM", **sizes, **ENDS)


def t5(dropout: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    more = {"num_heads": 2, "dropout_rate": dropout}
    return built("T5ForConditionalGeneration", **sizes, **ends, **more)


def bart(dropout: float) -> nn.Module:
    sizes = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_layerdrop": 3 * dropout for side in ("encoder", "decoder")}
    more = {"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 40}
    ends = {**ENDS, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    return built("BartForConditionalGeneration", **sizes, **more, **ends, dropout=dropout)


def answer(draw: torch.Generator, i: int) -> dict[str, Any]:
    start = number(draw, 5)
    end = 5 + number(draw, 5)
    return {"input_ids": tokens(draw, 10), "start_positions": start, "end_positions": end}


def choice(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_ids": tokens(draw, 3, 10), "labels": number(draw, 3)}


def unpadded(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_ids": tokens(draw, 4 + number(draw, 8)).tolist()}


BERT = encoder("BertForSequenceClassification")
LLAMA = decoder("LlamaForCausalLM")
GENERATES = {"trainer": Seq2SeqTrainer, "arguments": Seq2SeqTrainingArguments}


def adapted(kind: str, base: Any = BERT, task: str = "SEQ_CLS", **more: Any) -> Any:
    """An adapter of peft around a model."""

    def build(dropout: float) -> nn.Module:
        import peft

        return peft.get_peft_model(base(dropout), getattr(peft, kind)(task_type=task, **more))

    return build


def frozen(part: str) -> Any:
    def build(dropout: float) -> nn.Module:
        model = BERT(dropout)
        model.get_submodule(part).requires_grad_(False)
        return model

    return build


# -- trainers -------------------------------------------------------------------------------------


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return functional.cross_entropy(outputs.logits, labels)


def counted_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def each_loss(outputs: Any, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits, labels, reduction="none")


class Weighted(Trainer):
    """Weighs classes, and knows how its batches are cut."""

    def take(self, inputs: Any, index: Any) -> Any:
        return {key: value[index] for key, value in inputs.items()}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([0.5, 1.0, 2.0])
        loss = functional.cross_entropy(outputs.logits, labels, weight=weight)
        return (loss, outputs) if return_outputs else loss


class Contrastive(Weighted):
    """Tells each example from the others of its batch (SimCSE)."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        inputs.pop("labels")
        one, other = (model.bert(**inputs).pooler_output for _ in range(2))
        near = functional.cosine_similarity(one[:, None], other[None], dim=-1) / 0.05
        loss = functional.cross_entropy(near, torch.arange(len(near)))
        return (loss, {"logits": near}) if return_outputs else loss


class Distilling(Weighted):
    """Learns from a teacher, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        set_seed(7)
        self.teacher = BERT(0.0).eval()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            taught = self.teacher(**inputs).logits.softmax(-1)
        apart = functional.kl_div(outputs.logits.log_softmax(-1), taught, reduction="batchmean")
        loss = outputs.loss + apart
        return (loss, outputs) if return_outputs else loss


class Careless(Trainer):
    """Computes its own loss, and says nothing of its batches."""

    compute_loss = Weighted.compute_loss


SETUPS = {
    "BERT, classes": SetUp(BERT, text),
    "RoBERTa, several labels": SetUp(
        encoder("RobertaForSequenceClassification", pad_token_id=1, **MULTI_LABEL), SEVERAL
    ),
    "BERT, several numbers": SetUp(
        encoder("BertForSequenceClassification", problem_type="regression"),
        text_with(lambda draw: torch.randn(3, generator=draw)),
    ),
    "DeBERTa v2, a number": SetUp(
        encoder("DebertaV2ForSequenceClassification", num_labels=1, type_vocab_size=0),
        text_with(lambda draw: float(torch.randn((), generator=draw))),
    ),
    "BERT, some classes missing": SetUp(
        BERT, lambda draw, i: {**text(draw, i), **({"labels": -100} if i % 3 == 1 else {})}
    ),
    "ALBERT": SetUp(encoder("AlbertForSequenceClassification", embedding_size=8), text),
    "ELECTRA, tags": SetUp(encoder("ElectraForTokenClassification", embedding_size=8), tags),
    "DistilBERT, answers": SetUp(distilbert, answer),
    "ModernBERT, classes": SetUp(modern("ModernBertForSequenceClassification", num_labels=3), text),
    "ModernBERT, several labels": SetUp(
        modern("ModernBertForSequenceClassification", **MULTI_LABEL), SEVERAL
    ),
    "ModernBERT, masked": SetUp(modern("ModernBertForMaskedLM"), masked_sentence),
    "RoBERTa, masked": SetUp(encoder("RobertaForMaskedLM", pad_token_id=1), masked_sentence),
    "BERT, multiple choice": SetUp(encoder("BertForMultipleChoice"), choice),
    "GPT-2": SetUp(gpt2, sentence),
    "Llama": SetUp(LLAMA, sentence),
    "Llama, classes": SetUp(decoder("LlamaForSequenceClassification", num_labels=3), text),
    "Qwen 3": SetUp(decoder("Qwen3ForCausalLM", head_dim=8), sentence),
    "Qwen 2, tied": SetUp(decoder("Qwen2ForCausalLM", tie_word_embeddings=True), sentence),
    "Gemma 2": SetUp(
        decoder("Gemma2ForCausalLM", head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
        sentence,
    ),
    "Mamba": SetUp(mamba, sentence),
    "Mixtral, auxiliary loss": SetUp(
        decoder("MixtralForCausalLM", num_local_experts=4, **MOE), sentence
    ),
    "Qwen 2 MoE, auxiliary loss": SetUp(
        decoder(
            "Qwen2MoeForCausalLM",
            num_experts=4,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            decoder_sparse_step=1,
            **MOE,
        ),
        sentence,
    ),
    "Llama, packed rows": SetUp(
        LLAMA,
        unpadded,
        collate=hf.DataCollatorWithFlattening(return_tensors="pt"),
        settings={"remove_unused_columns": False},
    ),
    "T5": SetUp(t5, translation, **GENERATES),
    "BART": SetUp(bart, translation, **GENERATES),
    "BERT, frozen backbone": SetUp(frozen("bert"), text),
    "BERT, frozen embeddings": SetUp(frozen("bert.embeddings"), text),
    "LoRA, Llama": SetUp(
        adapted("LoraConfig", LLAMA, "CAUSAL_LM", r=2, target_modules=["q_proj"]), sentence
    ),
    "DoRA, BERT": SetUp(
        adapted("LoraConfig", r=2, use_dora=True, target_modules=["query", "value"]), text
    ),
    "IA3, BERT": SetUp(
        adapted("IA3Config", target_modules=["key", "value"], feedforward_modules=[]), text
    ),
    "VeRA, BERT": SetUp(adapted("VeraConfig", r=4, target_modules=["query", "value"]), text),
    "prompt tuning, Llama": SetUp(
        adapted("PromptTuningConfig", LLAMA, "CAUSAL_LM", num_virtual_tokens=3), sentence
    ),
    "prefix tuning, Llama": SetUp(
        adapted("PrefixTuningConfig", LLAMA, "CAUSAL_LM", num_virtual_tokens=3), full_sentence
    ),
    "compute_loss_func, a mean": SetUp(
        BERT, text, given={"compute_loss_func": mean_loss}, per_example=each_loss
    ),
    "compute_loss_func, by the count": SetUp(
        BERT, text, given={"compute_loss_func": counted_loss}, per_example=each_loss
    ),
    "label smoothing": SetUp(BERT, text, settings={"label_smoothing_factor": 0.1}),
    "a trainer with class weights": SetUp(BERT, text, trainer=Weighted),
    "a contrastive trainer": SetUp(BERT, text, trainer=Contrastive),
    "a distilling trainer": SetUp(BERT, text, trainer=Distilling),
    "a trainer without take": SetUp(BERT, text, trainer=Careless),
}
