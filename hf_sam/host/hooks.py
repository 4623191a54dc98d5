# SPDX-License-Identifier: Apache-2.0
"""A check of the user's own hooks that run inside a backward pass."""

from __future__ import annotations

import dis
import functools
import logging
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

LIBRARIES = ("torch.", "deepspeed.", "accelerate.")


def check_hooks(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Refuse hooks that consume a gradient inside of backward, and log the others once.

    A hook may step an optimizer and then drop the gradient. It would do so in every pass, at the
    perturbed weights, too. Hooks that only read the gradient are allowed.

    Args:
        named: parameters with their names.

    Raises:
        NotImplementedError: a hook of `register_post_accumulate_grad_hook` that steps an optimizer
            or replaces the gradient.
    """
    looking = []
    for name, param in named:
        for hook in (getattr(param, "_post_accumulate_grad_hooks", None) or {}).values():
            if not param.requires_grad or _of_library(hook):
                continue
            if _consumes(hook):
                raise NotImplementedError(
                    f"hf_sam does not support the register_post_accumulate_grad_hook on {name}: "
                    "it steps an optimizer or replaces the gradient inside backward, which every "
                    "pass of a method runs; give the optimizer to the Trainer, or change gradients "
                    "in a callback's on_pre_optimizer_step"
                )
            looking.append(name)
    if looking:
        logger.warning(
            f"The register_post_accumulate_grad_hook on {', '.join(looking[:8])} runs in every "
            "pass of an update."
        )


def _of_library(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(LIBRARIES)


def _consumes(hook: Any) -> bool:
    """Return whether a hook's code calls a `step`, reaches an optimizer, or assigns `.grad`."""
    reached = list(_reached(hook, 3))
    if any(isinstance(one, torch.optim.Optimizer) for one in reached):
        return True
    codes = [c for one in reached if (c := _code(one)) is not None]
    return any(_steps_or_assigns(c) for code in codes for c in _nested(code))


def _reached(value: Any, depth: int) -> Iterator[Any]:
    """Yield a callable, and the objects that it calls or holds, down to a depth."""
    yield value
    if depth == 0:
        return
    held: list[Any] = []
    if isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif hasattr(value, "__self__"):
        held = [value.__func__, *_attributes(value.__self__)] if hasattr(value, "__func__") else []
    elif isinstance(value, (dict, list, tuple)):
        held = list(value.values() if isinstance(value, dict) else value)[:8]
    elif (code := _code(value)) is not None:
        function = value if hasattr(value, "__globals__") else type(value).__call__
        names = {n for c in _nested(code) for n in c.co_names}
        held = [function.__globals__[n] for n in names if n in function.__globals__]
        held += [c.cell_contents for c in function.__closure__ or () if _filled(c)]
        held += [*(function.__defaults__ or ()), *_attributes(value)]
    for one in held:
        if callable(one) or isinstance(one, (dict, list, tuple, torch.optim.Optimizer)):
            if not isinstance(one, (type, nn.Module)) and not _of_library(one):
                yield from _reached(one, depth - 1)
            elif isinstance(one, torch.optim.Optimizer):
                yield one


def _attributes(value: Any) -> list[Any]:
    return list(getattr(value, "__dict__", {}).values())


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable of the closure that is not assigned yet
        return False


def _code(value: Any) -> CodeType | None:
    """Return the code of a function, or of what a callable object runs."""
    code = getattr(value, "__code__", None)
    if code is None and callable(value) and not isinstance(value, type):
        code = getattr(type(value).__call__, "__code__", None)
    return code


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _nested(inner)


def _steps_or_assigns(code: CodeType) -> bool:
    # The bytecode is read, because calling the hook to see what it does would do it.
    for i in dis.get_instructions(code):
        if i.opname in ("STORE_ATTR", "DELETE_ATTR") and i.argval == "grad":
            return True
        calls = i.opname == "LOAD_METHOD" or "NULL" in i.argrepr  # before and since Python 3.12
        if calls and i.argval == "step":
            return True
    return False
