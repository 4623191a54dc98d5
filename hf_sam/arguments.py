# SPDX-License-Identifier: Apache-2.0
"""`SAMTrainingArguments`, and the functions that turn names into method objects."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from .landscape import OFFLOAD, ROUNDING
from .methods import METHODS, MSAM, Method, PerGroup, Plain, When
from .parts.base import nearest
from .parts.when import always
from .texts import parse_options, parse_rho, parse_when

ACCUMULATION = ("window", "micro")
ASCENT_SYNC = ("auto", "global", "local")


def check_order(cls: type, mixin: type, base: type) -> None:
    """Refuse a class in which a mixin comes after a base that it should come before.

    Raises:
        TypeError: the order is wrong; the message shows the order that works.
    """
    order = cls.__mro__
    if base in order and order.index(base) < order.index(mixin):
        raise TypeError(
            f"{cls.__name__}: {mixin.__name__} must come first, or it has no effect: "
            f"class {cls.__name__}({mixin.__name__}, ...)"
        )


@dataclass
class SAMArguments:
    """The `sam_*` fields, for any `TrainingArguments` class.

    A subclass becomes a dataclass by itself.

    Example:
        >>> from transformers import Seq2SeqTrainingArguments
        >>> class SAMSeq2SeqArguments(SAMArguments, Seq2SeqTrainingArguments): ...
        >>> SAMSeq2SeqArguments("out", sam="looksam", sam_options="k=3,alpha=0.2").sam_options
        {'k': 3, 'alpha': 0.2}
    """

    sam: str = field(
        default="sam",
        metadata={"help": "Method: a key of hf_sam.METHODS, or 'none' for the plain Trainer."},
    )
    sam_rho: str | None = field(
        default=None,
        metadata={
            "help": "Radius: a number, or a schedule linear:START:END, cosine:START:END, lr:RHO "
            "(proportional to the learning rate), budget:C:RHO_MAX (relative rise of the loss), "
            "loss:SIGMA:RHO_MAX[:ANNEAL] (absolute rise: LE-SAM), relative:R (per layer, of its "
            "weights). "
            "Default: the method's own."
        },
    )
    sam_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "The method's other fields: a dict, JSON, or 'gamma=0.5,beta=0.6'."},
    )
    sam_when: str = field(
        default="always",
        metadata={
            "help": "Which updates are perturbed: always, after:F, before:F, between:A:B "
            "(fractions of all updates), every:K, after_warmup, decay (once the learning rate "
            "falls), learning[:SHARE] (while the loss is below that share of its first value), "
            "random:constant:P, "
            "random:piecewise:P0:P1:SWITCH, random:linear:P0:P1, random:trigonometric:P0:P1, "
            "adaptive (AE-SAM)."
        },
    )
    sam_where: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": "Which trainable parameters are perturbed: all, norm, no_norm, no_embeddings, "
            "or name regexes."
        },
    )
    sam_accumulation: str = field(
        default="window",
        metadata={
            "help": "window: perturb once per update, for the whole accumulated batch; micro: "
            "every micro-batch takes its own perturbation.",
            "choices": ACCUMULATION,
        },
    )
    sam_ascent_sync: str = field(
        default="auto",
        metadata={
            "help": "global: the ascent gradient is averaged over ranks; local: each rank "
            "perturbs with its own; auto: local under DDP for methods that allow it, else global.",
            "choices": ASCENT_SYNC,
        },
    )
    sam_replay_rng: bool = field(
        default=True,
        metadata={
            "help": "The same random numbers (dropout masks, generators of the model's own) in "
            "every pass of an update."
        },
    )
    sam_freeze_norm_stats: bool = field(
        default=True,
        metadata={
            "help": "Running statistics of normalisation layers move once per update (first pass), "
            "not once per pass; all other state of a model always does."
        },
    )
    sam_rounding: str = field(
        default="nearest",
        metadata={
            "help": "How perturbed weights are stored in bfloat16. nearest: most of a small "
            "perturbation is lost; stochastic: it is kept on average, with noise.",
            "choices": ROUNDING,
        },
    )
    sam_offload: str = field(
        default="none",
        metadata={
            "help": "cpu: while weights are perturbed, their values are kept in the host's memory "
            "instead of the accelerator's, at the cost of a copy there and back.",
            "choices": OFFLOAD,
        },
    )
    sam_track_memory: bool = field(
        default=False,
        metadata={"help": "Log peak memory per phase of an update and into train_results.json."},
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make every subclass a dataclass, with the fields of all its bases."""
        super().__init_subclass__(**kwargs)
        check_order(cls, SAMArguments, TrainingArguments)
        dataclass(cls)

    def __post_init__(self) -> None:
        """Check every field, and then call the next class's `__post_init__`."""
        where: list[str] | str = self.sam_where
        self.sam_where = [where] if isinstance(where, str) else list(where)
        self.sam_options = parse_options(self.sam_options) or None
        _one_of("sam_accumulation", self.sam_accumulation, ACCUMULATION)
        _one_of("sam_ascent_sync", self.sam_ascent_sync, ASCENT_SYNC)
        _one_of("sam_rounding", self.sam_rounding, ROUNDING)
        _one_of("sam_offload", self.sam_offload, OFFLOAD)
        build_method(self)
        base = getattr(super(), "__post_init__", None)
        if base is not None:
            base()


@dataclass
class SAMTrainingArguments(SAMArguments, TrainingArguments):
    """`TrainingArguments` with the `sam_*` fields."""


def option(args: Any, name: str) -> Any:
    """Return a `sam_*` field of any arguments object, or the default if the object has none."""
    if hasattr(args, name):
        return getattr(args, name)
    f = SAMArguments.__dataclass_fields__[name]
    return f.default if f.default_factory is MISSING else f.default_factory()


def build_method(args: Any, given: str | Method | None = None) -> Method:
    """Return a new method object for these arguments.

    Args:
        args: arguments with or without `sam_*` fields.
        given: a name that overrides `args.sam`, a method object (copied), or None.

    Raises:
        ValueError: an unknown name, an option that the method does not have, a value that is not
            allowed.
        TypeError: `given` is something else.
    """
    rho, options = option(args, "sam_rho"), parse_options(option(args, "sam_options"))
    if isinstance(given, Method):
        if rho is not None or options:
            raise ValueError(
                f"sam={type(given).__name__}(...) is an object with its own options; "
                f"sam_rho={rho!r} and sam_options={options!r} would be ignored: give them to the "
                "object, or give the method by name"
            )
        method = copy.deepcopy(given)  # state that a run changes must not leak into the next run
    elif given is None or isinstance(given, str):
        method = by_name(option(args, "sam") if given is None else given, rho, options)
    else:
        raise TypeError(
            f"sam={given!r} is neither a key of METHODS nor a method object such as SAM(rho=0.05)"
        )
    if option(args, "sam_accumulation") == "micro":
        method = per_micro_batch(method)
    schedule = parse_when(option(args, "sam_when"))
    if isinstance(schedule, always):
        return checked_sync(args, method)
    if method.when is not None:
        raise ValueError(
            f"sam_when={option(args, 'sam_when')!r} would be a second schedule beside the one that "
            f"{type(method).__name__} brings, {method.when}: leave sam_when at 'always', or use a "
            "method without a schedule, such as sam='sam'"
        )
    return checked_sync(args, When(schedule, method))


def checked_sync(args: Any, method: Method) -> Method:
    """Return the method, after a check that it allows the given `sam_ascent_sync`."""
    if option(args, "sam_ascent_sync") == "local" and not method.local_ascent:
        raise ValueError(
            f"sam_ascent_sync='local' is not possible with {main_method(method)[0]}: its update "
            "needs more than the descent gradient, and ranks would drift apart; use 'auto' or "
            "'global'"
        )
    return method


def main_method(method: Method) -> tuple[str, Method]:
    """Return the key and the object of the method inside a schedule or grouping.

    A method that is assembled in Python and has no key in `METHODS` has its class's name as key.
    """
    keys = {kind: key for key, kind in METHODS.items()}
    for part in method.walk():
        if isinstance(part, Method) and type(part) in keys:
            return keys[type(part)], part
    return type(method).__name__, method


def per_micro_batch(method: Method) -> Method:
    """Return a method that treats each micro-batch by itself (`sam_accumulation="micro"`)."""
    if isinstance(method, Plain):
        return method
    if isinstance(method, (MSAM, PerGroup)):
        raise ValueError(
            "sam_accumulation='micro' makes a group of every micro-batch, and "
            f"{type(method).__name__} has its own groups: leave sam_accumulation at 'window'"
        )
    return PerGroup(None, method)


def by_name(name: str, rho: Any, options: Mapping[str, Any]) -> Method:
    """Return `METHODS[name]` built with these options."""
    if name not in METHODS:
        raise ValueError(
            f"sam={name!r} is not a method; choose from "
            f"{', '.join(METHODS)}{nearest(name, METHODS)}"
        )
    known = {f.name: f for f in fields(METHODS[name]) if not f.metadata.get("python")}
    for key in options:
        if key not in known or key == "rho":
            others = [k for k in known if k != "rho"]
            listed = f"it has {', '.join(others)}" if others else "it has none besides sam_rho"
            raise ValueError(
                f"sam_options: {name!r} has no option {key!r}; {listed}{nearest(key, others)}"
            )
    values = dict(options)
    if rho is not None and name != "none":
        values["rho"] = parse_rho(rho)
    return METHODS[name](**values)


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{argument}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}"
        )
