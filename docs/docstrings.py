# SPDX-License-Identifier: Apache-2.0
"""Docstrings as mkdocstrings reads them: it knows the heading `Examples`, the code has one each."""

from __future__ import annotations

from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Shows what stands under `Example:` as code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the heading of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
