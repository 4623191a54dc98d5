# SPDX-License-Identifier: Apache-2.0
"""The random numbers of an update: torch's generator at a mixture of seed and update."""

import torch


def generator(seed: int, step: int) -> torch.Generator:
    mixture = (0x9E3779B97F4A7C15 * seed + 0xD1B54A32D192ED03 * step + 1) & ((1 << 63) - 1)
    return torch.Generator().manual_seed(mixture)
