# SPDX-License-Identifier: Apache-2.0
"""What watches a training run and reports on it."""

from .memory import MemoryCallback

__all__ = ["MemoryCallback"]
