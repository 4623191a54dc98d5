# SPDX-License-Identifier: Apache-2.0
"""Residual networks for small images, as the papers on SAM train them.

`cifar_resnet` and `wide_resnet` begin with a 3x3 convolution and no pooling, where a ResNet for
ImageNet divides the image's side by four first. They load and save like any other model of
transformers once this module is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class CifarResNetConfig(PretrainedConfig):
    """ResNet with basic blocks; the default is ResNet-18 (11.2 M weights with 10 classes).

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.

    Args:
        depths: blocks per stage; every stage but the first halves the image's side.
        hidden_sizes: channels per stage.
        num_channels: of the images.
        **kwargs: as every configuration takes them.
    """

    model_type = "cifar_resnet"

    depths: list[int]
    hidden_sizes: list[int]
    num_channels: int

    def __init__(
        self,
        depths: list[int] | tuple[int, ...] = (2, 2, 2, 2),
        hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512),
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.depths, self.hidden_sizes = list(depths), list(hidden_sizes)
        self.num_channels = num_channels
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes}: give one number per "
                "stage in both"
            )
        super().__init__(**kwargs)


class WideResNetConfig(PretrainedConfig):
    """Wide residual network; the default is WRN-28-10 (36.5 M weights with 10 classes).

    Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146.

    Args:
        depth: layers, 6 n + 4 with n blocks in each of three stages.
        widen_factor: channels are 16, 32 and 64 times this.
        dropout: between the two convolutions of a block.
        num_channels: of the images.
        **kwargs: as every configuration takes them.
    """

    model_type = "wide_resnet"

    depth: int
    widen_factor: int
    dropout: float
    num_channels: int

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        self.depth, self.widen_factor = depth, widen_factor
        self.dropout, self.num_channels = dropout, num_channels
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a wide ResNet has 6 n + 4 layers: 10, 16, 22, 28, 40")
        super().__init__(**kwargs)


def _convolution(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, the activation after their sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class WideBlock(nn.Module):
    """Norm and activation before each of two convolutions; the shortcut stays untouched."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _convolution(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _convolution(outputs, outputs)
        self.dropout = nn.Dropout(dropout)
        changes = stride != 1 or inputs != outputs
        self.shortcut = _convolution(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        active = functional.relu(self.norm1(x))
        y = functional.relu(self.norm2(self.conv1(active)))
        return self.conv2(self.dropout(y)) + (x if self.shortcut is None else self.shortcut(active))


class ImageClassifier(PreTrainedModel):
    """A body of convolutions, the mean over the image, and one linear layer.

    A subclass builds `body`, which maps (B, C, H, W) to (B, `features`, h, w).
    """

    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.body, features = self._build(config)
        self.classifier = nn.Linear(features, config.num_labels)
        self.post_init()

    def _build(self, config: Any) -> tuple[nn.Module, int]:
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation for convolutions; what torch does for everything else."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Return the logits (B, classes), with labels (B,) also the mean cross-entropy `()`."""
        logits = self.classifier(self.body(pixel_values).mean((2, 3)))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class CifarResNetForImageClassification(ImageClassifier):
    """ResNet for small images."""

    config_class = CifarResNetConfig

    def _build(self, config: CifarResNetConfig) -> tuple[nn.Module, int]:
        sizes = config.hidden_sizes
        layers: list[nn.Module] = [
            _convolution(config.num_channels, sizes[0]),
            nn.BatchNorm2d(sizes[0]),
            nn.ReLU(),
        ]
        inputs = sizes[0]
        for stage, (depth, outputs) in enumerate(zip(config.depths, sizes, strict=True)):
            for block in range(depth):
                layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        return nn.Sequential(*layers), inputs


class WideResNetForImageClassification(ImageClassifier):
    """Wide residual network for small images."""

    config_class = WideResNetConfig

    def _build(self, config: WideResNetConfig) -> tuple[nn.Module, int]:
        layers: list[nn.Module] = [_convolution(config.num_channels, 16)]
        inputs = 16
        for stage in range(3):
            outputs = 16 * 2**stage * config.widen_factor
            for block in range((config.depth - 4) // 6):
                stride = 2 if stage and not block else 1
                layers.append(WideBlock(inputs, outputs, stride, config.dropout))
                inputs = outputs
        return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU()), inputs


for _kind in (CifarResNetForImageClassification, WideResNetForImageClassification):
    AutoConfig.register(_kind.config_class.model_type, _kind.config_class)
    AutoModelForImageClassification.register(_kind.config_class, _kind)
