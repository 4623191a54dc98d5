# SPDX-License-Identifier: Apache-2.0
"""The section of a model card that names the method."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TAG = "hf_sam"


def write_with_tag(write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write a Trainer's model card with one more tag."""
    # Bound to the signature, because `tags` may be given by position or by name.
    given = inspect.signature(write).bind(*args, **kwargs)
    tags = given.arguments.get("tags")
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    given.arguments["tags"] = [*tags, *(tag for tag in (TAG,) if tag not in tags)]
    write(*given.args, **given.kwargs)


def add_section(folder: str | Path, version: str, paper: str, config: dict[str, Any]) -> None:
    """Append a section about the method to the model card in a folder.

    Args:
        folder: the folder of the card, if one was written.
        version: the version of hf_sam.
        paper: the method's paper.
        config: the method with all its options, as in `SAMMixin.sam_config`.
    """
    card = Path(folder) / "README.md"
    if card.is_file():
        section = (
            f"\n### Sharpness-aware minimization\n\nTrained with hf_sam {version}, method "
            f"`{config['sam']}` ({paper}):\n\n```json\n{json.dumps(config, indent=2)}\n```\n"
        )
        card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")
