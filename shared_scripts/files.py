# SPDX-License-Identifier: Apache-2.0
"""The script's own files: written whole or not at all, and read with caution."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever finds half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a mapping as sorted JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=4, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a file of an earlier run; an empty one, with a warning, if broken."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is broken (%s): beginning a new one", path, error)
        return {}
    if isinstance(values, dict):
        return values
    logger.warning("%s holds no mapping of names to values: beginning a new one", path)
    return {}
