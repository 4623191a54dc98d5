# SPDX-License-Identifier: Apache-2.0
"""Advice on a radius that suits weights from scratch and harms weights from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def from_checkpoint(params: Iterable[Tensor]) -> bool:
    """Return whether some of the trained parameters were loaded by `from_pretrained`.

    A new adapter or head on a loaded model is not; what it stands on is not trained.
    """
    # transformers marks what it has loaded, so that it is not initialised a second time.
    return any(p.requires_grad and getattr(p, "_is_hf_initialized", False) for p in params)


def advise_radius(name: str, method: Any, warn: Callable[[str], None]) -> None:
    """Warn, once in a process, of a method's default radius on weights from a checkpoint.

    Args:
        name: the method's key.
        method: the method, with a `pretrained_rho` and perhaps with a `rho`.
        warn: a function that logs the warning.
    """
    rule = type(method).__dataclass_fields__.get("rho")
    rho, better = getattr(method, "rho", None), method.pretrained_rho
    known = rule is not None and better is not None and isinstance(rho, float)
    if not known or rho != rule.default or rho <= better or name in _warned:
        return
    _warned.add(name)
    warn(
        f"{name} is at its default radius {rho}, which suits images from scratch, and these "
        "weights come from a checkpoint: radii that were tuned for such lie between 0.0001 and "
        f"0.01. Try sam_rho={better} or less; sam_rho={rho} keeps the radius without this warning."
    )


_warned: set[str] = set()
"""The methods that this process has warned of."""
