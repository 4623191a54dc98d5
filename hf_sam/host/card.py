# SPDX-License-Identifier: Apache-2.0
"""The section of a model card about the method: its paper, cost, options, and what was measured."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TAG = "hf_sam"
SHARE, SHARPNESS, PEAK = "sam/share_perturbed_updates", "sam/sharpness", "memory/peak_mb"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
MEASURED = Path(__file__).with_name("measured.json")
"""What `python -m benchmarks.tables` found: method -> time and memory beside the plain Trainer."""


def write_with_tags(write: Callable[..., None], key: str, *args: Any, **kwargs: Any) -> None:
    """Write a Trainer's model card with two more tags: ours and the method's key."""
    # Bound to the signature, because `tags` may be given by position or by name.
    given = inspect.signature(write).bind(*args, **kwargs)
    tags = given.arguments.get("tags")
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    given.arguments["tags"] = [*tags, *(tag for tag in (TAG, key) if tag not in tags)]
    write(*given.args, **given.kwargs)


def add_section(
    folder: str | Path | None,
    version: str,
    kind: type,
    config: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Append a section about the method to the model card in a folder.

    Args:
        folder: the folder of the card, if one was written.
        version: the version of hf_sam.
        kind: the method's class.
        config: the method with all its options, as in `SAMMixin.sam_config`.
        history: the log of the training.
    """
    card = Path(folder or ".") / "README.md"
    if not card.is_file():
        return
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    section = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=version,
        **_about(kind, str(config["sam"])),
        config=json.dumps(config, indent=2),
        **_found(history),
    )
    card.write_text(card.read_text(encoding="utf-8") + section + "\n", encoding="utf-8")


def _about(kind: Any, key: str) -> dict[str, Any]:
    """Return what the method's class says of itself, and what was measured of it."""
    paper = getattr(kind, "paper", "")
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    return {
        "key": key,
        "title": (inspect.getdoc(kind) or key).splitlines()[0],
        "arxiv": re.findall(r"arXiv (\d{4}\.\d{4,5})", paper),
        "passes": getattr(kind, "passes", ""),
        "memory": getattr(kind, "memory", ""),
        "measured": measured["methods"].get(key) and measured["methods"][key] | measured["setting"],
    }


def _found(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what the log says of the perturbations and of the memory."""
    shares = [log[SHARE] for log in history if SHARE in log]
    sharp = [
        {"value": f"{log[SHARPNESS]:.3g}", "step": log["step"]}
        for log in history
        if SHARPNESS in log
    ]
    peaks = [log[PEAK] for log in history if PEAK in log]
    return {
        "perturbed": f"{sum(shares) / len(shares):.0%} of those logged" if shares else None,
        "first": sharp[0] if len(sharp) > 1 else None,
        "last": sharp[-1] if sharp else None,
        "peak": f"{max(peaks):.0f}" if peaks else None,
    }
