# SPDX-License-Identifier: Apache-2.0
"""Set-ups of models for images, sound, series, and several of them at once."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from .setup import (
    VOCABULARY,
    SetUp,
    number,
    picture,
    pixels,
    sound,
    tags,
    tokens,
    trailing_out,
)
from .text import DECODER, GENERATES, built, encoder

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT |= {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
RESNET = {"embedding_size": 8, "layer_type": "basic"}
SIDES = ("encoder", "decoder")
HALVES = {f"{side}_attention_heads": 2 for side in SIDES} | {f"{s}_ffn_dim": 32 for s in SIDES}
WAVES = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WAVES |= {"intermediate_size": 32, "conv_dim": (16, 16), "conv_stride": (5, 4)}
WAVES |= {"conv_kernel": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16}
WAVES |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "pad_token_id": 0}
KEEP = {"settings": {"remove_unused_columns": False}}


def vision(name: str, **more: Any) -> Any:
    return encoder(name, **{**VIT, **more})


def fixed(name: str, **sizes: Any) -> Any:
    """A model whose dropout is left alone."""
    return lambda dropout: built(name, **sizes)


def waves(name: str, **more: Any) -> Any:
    def build(dropout: float) -> nn.Module:
        rates = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        rates = (*rates, "final_dropout", "layerdrop")
        spectrum = {"apply_spec_augment": bool(dropout), "mask_time_prob": 0.3}
        spectrum["mask_time_length"] = 2
        return built(name, **WAVES, **dict.fromkeys(rates, dropout), **spectrum, **more)

    return build


def spelled(draw: torch.Generator, i: int) -> dict[str, Any]:
    labels = trailing_out(torch.randint(1, 12, (6,), generator=draw), 3, draw)
    return {"input_values": torch.randn(600, generator=draw), "labels": labels}


def whisper(dropout: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "num_mel_bins": 8, "d_model": 16, **HALVES}
    sizes |= {f"{side}_layers": 2 for side in SIDES}
    sizes |= {"max_source_positions": 30, "max_target_positions": 20, "dropout": dropout}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    none = {"suppress_tokens": None, "begin_suppress_tokens": None}
    return built("WhisperForConditionalGeneration", **sizes, **ends, **none)


def speech(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_features": torch.randn(8, 60, generator=draw), "labels": tokens(draw, 6)}


def spoken(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {
        "input_ids": tokens(draw, 10),
        "labels": torch.randn(8, 4, generator=draw),
        "speaker_embeddings": torch.randn(8, generator=draw),
    }


def speaker(dropout: float) -> nn.Module:
    rates = ("positional_dropout", "hidden_dropout", "attention_dropout", "activation_dropout")
    rates = (*rates, "speech_decoder_prenet_dropout", "speech_decoder_postnet_dropout")
    rates = (*rates, "encoder_layerdrop", "decoder_layerdrop")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_mel_bins": 4, **HALVES}
    sizes |= {f"{side}_layers": 1 for side in SIDES}
    sizes |= {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8}
    sizes |= {"speech_decoder_postnet_layers": 2, "speaker_embedding_dim": 8}
    sizes["use_guided_attention_loss"] = False
    return built("SpeechT5ForTextToSpeech", **sizes, **dict.fromkeys(rates, 0.0))


def hidden_patches(draw: torch.Generator, i: int) -> dict[str, Any]:
    hidden = torch.zeros(16, dtype=torch.bool)
    hidden[torch.randperm(16, generator=draw)[:6]] = True
    return {**pixels(draw), "bool_masked_pos": hidden}


def segments(draw: torch.Generator, i: int) -> dict[str, Any]:
    labels = torch.randint(0, 3, (32, 32), generator=draw)
    labels[: 4 * (i % 5)] = 255
    return {**pixels(draw), "labels": labels}


def objects(draw: torch.Generator, i: int) -> dict[str, Any]:
    count = 1 + i % 3
    boxes = torch.rand(count, 4, generator=draw) * 0.4 + 0.2
    found = torch.randint(0, 3, (count,), generator=draw)
    return {**pixels(draw), "labels": {"class_labels": found, "boxes": boxes}}


def listed(examples: list[Any]) -> dict[str, Any]:
    """A batch whose labels are a list, as object detection has them."""
    stacked = torch.stack([e["pixel_values"] for e in examples])
    return {"pixel_values": stacked, "labels": [e["labels"] for e in examples]}


def detr(dropout: float) -> nn.Module:
    backbone = hf.ResNetConfig(
        hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, out_features=["stage4"], **RESNET
    )
    none = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, **HALVES}
    more = {"num_labels": 3, "dropout": dropout, "auxiliary_loss": True}
    return built("DetrForObjectDetection", **none, backbone_config=backbone, **sizes, **more)


def caption(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {"input_ids": torch.cat([tokens(draw, 9), torch.tensor([63])]), **pixels(draw)}


def with_loss(examples: list[Any]) -> dict[str, Any]:
    return {**hf.default_data_collator(examples), "return_loss": True}


def clip(dropout: float) -> nn.Module:
    small = {"num_hidden_layers": 1, "attention_dropout": dropout}
    words = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, **small}
    words |= {"intermediate_size": 32, "max_position_embeddings": 20, "eos_token_id": 63}
    config = {"text_config": words, "vision_config": {**VIT, **small}, "projection_dim": 8}
    return built("CLIPModel", **config)


def series(draw: torch.Generator, i: int) -> dict[str, Any]:
    return {
        "past_values": torch.rand(14, generator=draw) + 1,
        "past_time_features": torch.randn(14, 1, generator=draw),
        "past_observed_mask": torch.ones(14),
        "future_values": torch.rand(4, generator=draw) + 1,
        "future_time_features": torch.randn(4, 1, generator=draw),
    }


def forecaster(dropout: float) -> nn.Module:
    sizes = {"prediction_length": 4, "context_length": 10, "lags_sequence": [1, 2, 4], **HALVES}
    sizes |= {"num_time_features": 1, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    return built("TimeSeriesTransformerForPrediction", **sizes, dropout=dropout)


def patches(draw: torch.Generator, i: int) -> dict[str, Any]:
    future = torch.randn(4, 2, generator=draw)
    return {"past_values": torch.randn(16, 2, generator=draw), "future_values": future}


PATCHES = {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4}
PATCHES |= {"d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}


def layout(draw: torch.Generator, i: int) -> dict[str, Any]:
    corners = torch.randint(0, 500, (10, 2), generator=draw)
    return {**tags(draw, i), "bbox": torch.cat([corners, corners + 100], 1)}


def question(draw: torch.Generator, i: int) -> dict[str, Any]:
    ids = torch.cat([torch.full((16,), 4), tokens(draw, 8)])
    labels = ids.clone()
    labels[: 17 + number(draw, 5)] = -100
    return {"input_ids": ids, "labels": labels, **pixels(draw)}


def llava(dropout: float) -> nn.Module:
    parts = {
        "vision_config": hf.CLIPVisionConfig(**VIT),
        "text_config": hf.LlamaConfig(**DECODER, attention_dropout=dropout),
    }
    return built(
        "LlavaForConditionalGeneration", **parts, image_token_index=4, vision_feature_layer=-1
    )


def patched_question(draw: torch.Generator, i: int) -> dict[str, Any]:
    start = torch.cat([torch.tensor([6]), torch.full((4,), 7)])
    ids = torch.cat([start, tokens(draw, 6).clamp(min=10)])
    labels = ids.clone()
    labels[:6] = -100
    kinds = torch.zeros_like(ids)
    kinds[1:5] = 1
    return {
        "input_ids": ids,
        "labels": labels,
        "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(16, 96, generator=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def one_after_the_other(examples: list[Any]) -> dict[str, Any]:
    """A batch in which the patches of all images follow each other, so that none has a row."""
    flat = {"pixel_values", "image_grid_thw"}
    joined = {key: [e[key] for e in examples] for key in examples[0]}
    return {k: (torch.cat if k in flat else torch.stack)(v) for k, v in joined.items()}


def qwen_vl(dropout: float) -> nn.Module:
    turns = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    words = {**DECODER, "rope_parameters": turns, "attention_dropout": dropout}
    sight = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
    sight |= {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    marks = {"image_token_id": 7, "video_token_id": 8}
    marks |= {"vision_start_token_id": 6, "vision_end_token_id": 9}
    return built("Qwen2VLForConditionalGeneration", text_config=words, vision_config=sight, **marks)


SETUPS = {
    "Whisper": SetUp(whisper, speech, **GENERATES),
    "wav2vec 2, CTC, a sum": SetUp(waves("Wav2Vec2ForCTC"), spelled),
    "wav2vec 2, CTC, a mean": SetUp(
        waves("Wav2Vec2ForCTC", ctc_loss_reduction="mean", ctc_zero_infinity=True), spelled
    ),
    "wav2vec 2, classes": SetUp(waves("Wav2Vec2ForSequenceClassification", num_labels=3), sound),
    "HuBERT, classes": SetUp(waves("HubertForSequenceClassification", num_labels=3), sound),
    "SpeechT5, frames": SetUp(speaker, spoken),
    "ViT": SetUp(vision("ViTForImageClassification"), picture),
    "DeiT": SetUp(vision("DeiTForImageClassification"), picture),
    "BEiT": SetUp(vision("BeitForImageClassification", vocab_size=VOCABULARY), picture),
    "Swin, stochastic depth": SetUp(
        lambda dropout: built(
            "SwinForImageClassification",
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=4,
            drop_path_rate=3 * dropout,
            num_labels=3,
        ),
        picture,
    ),
    "ConvNeXt, stochastic depth": SetUp(
        lambda dropout: built(
            "ConvNextForImageClassification",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
            drop_path_rate=3 * dropout,
            num_labels=3,
        ),
        picture,
    ),
    "ResNet, batch norm": SetUp(
        fixed(
            "ResNetForImageClassification",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_labels=3,
            **RESNET,
        ),
        picture,
    ),
    "ViT, hidden patches": SetUp(
        vision("ViTForMaskedImageModeling", encoder_stride=8), hidden_patches
    ),
    "ViT-MAE, random masks": SetUp(
        vision(
            "ViTMAEForPreTraining",
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            mask_ratio=0.5,
        ),
        lambda draw, i: pixels(draw),
    ),
    "SegFormer, batch norm": SetUp(
        encoder(
            "SegformerForSemanticSegmentation",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
        ),
        segments,
    ),
    "YOLOS, detection": SetUp(
        vision("YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=5),
        objects,
        collate=listed,
        **KEEP,
    ),
    "DETR, detection": SetUp(detr, objects, collate=listed, **KEEP),
    "CLIP, contrastive": SetUp(clip, caption, collate=with_loss, **KEEP),
    "a time series transformer": SetUp(forecaster, series),
    "PatchTST, batch norm": SetUp(
        fixed("PatchTSTForPrediction", prediction_length=4, **PATCHES), patches
    ),
    "PatchTST, random masks": SetUp(
        fixed("PatchTSTForPretraining", do_mask_input=True, random_mask_ratio=0.5, **PATCHES),
        lambda draw, i: {"past_values": patches(draw, i)["past_values"]},
    ),
    "LayoutLM, tags": SetUp(
        encoder("LayoutLMForTokenClassification", max_2d_position_embeddings=1024), layout
    ),
    "LLaVA": SetUp(llava, question),
    "Qwen 2 VL": SetUp(qwen_vl, patched_question, collate=one_after_the_other, **KEEP),
}
