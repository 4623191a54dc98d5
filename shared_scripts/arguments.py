# SPDX-License-Identifier: Apache-2.0
"""Arguments of a script, from the command line, from recipes and from one YAML or JSON file."""

import json
from argparse import Action, ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import TrainingArguments
from transformers.hf_argparser import HfArgumentParser, string_to_bool

from hf_sam.parts.base import nearest
from shared_scripts import settings
from shared_scripts.errors import InputError, one_line
from shared_scripts.usage import SCRIPT_DEFAULTS

ARGUMENT_FILES = (".yaml", ".yml", ".json")
MOST_BYTES = 2**20
"""Of a file of arguments."""
DEEPEST = 50
"""Of collections within collections there."""


def check_positive(arguments: Any, *names: str) -> None:
    """Raise an InputError for a number that is given and below 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")


@dataclass(kw_only=True)
class HubArguments:
    """How models are loaded, from the Hub or elsewhere."""

    cache_dir: str | None = field(
        default=None, metadata={"help": "Where to keep what is downloaded or prepared."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    token: str | None = field(
        default=None, metadata={"help": "Hub token; default: the one that `hf auth login` stored."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run code of models and metrics from the Hub. Read that code first."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Replace weights whose shape does not fit (another number of labels)."},
    )

    @property
    def download_options(self) -> dict[str, Any]:
        """What `from_pretrained` takes of them."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


class ArgumentParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line each, without pages of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise an InputError."""
        raise InputError(f"{message} (--help lists all arguments)")


def parse(
    kinds: Sequence[Any],
    argv: Sequence[str],
    prog: str,
    description: str,
    recipes: Path | None = None,
) -> Any:
    """Parse `[FILE] [--flag value ...]`; flags override the YAML or JSON file.

    Args:
        kinds: the dataclasses to fill.
        argv: the command line's words.
        prog: the script's name.
        description: what it does.
        recipes: folder of files that `--recipe NAME` names; everything else overrides a recipe, and
            a recipe the one that its own `recipe` names.

    Returns:
        One object per dataclass.

    Raises:
        InputError: an unknown name, a value of the wrong kind, or a combination that is refused.
    """
    parser = ArgumentParser(
        kinds,
        prog=prog,
        usage="%(prog)s [ARGUMENTS.yaml | ARGUMENTS.json] [--flag value ...]",
        description=description,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if action.dest == "include_num_input_tokens_seen":  # a bool or a word, for transformers
            action.type = _word_or_bool
    parser.set_defaults(**SCRIPT_DEFAULTS)
    flags = _with_files(parser, list(argv), recipes)
    _, unknown = parser.parse_known_args(flags)
    if unknown:
        parser.error(_unknown(unknown[0], parser))
    try:
        parsed = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError, NotImplementedError, OSError) as error:
        raise InputError(one_line(error, 1000)) from error
    for group in parsed:
        if isinstance(group, TrainingArguments):
            settings.check(group)
    return parsed


def _with_files(parser: ArgumentParser, flags: list[str], recipes: Path | None) -> list[str]:
    """Put what the files say before the flags."""
    found: list[tuple[Path, dict[str, Any]]] = []
    if flags and not flags[0].startswith("-"):
        path = Path(flags.pop(0))
        found.append((path, read_file(path)))
    if recipes is not None:
        name = _recipe_name(flags) or (found[0][1].get("recipe") if found else None)
        found += reversed(read_recipe(name, recipes)) if name else []
    merged = {
        str(key).replace("-", "_"): (path, value)
        for path, values in reversed(found)  # the last one wins
        for key, value in values.items()
    }
    return _as_flags(parser, merged) + flags


def _recipe_name(flags: Sequence[str]) -> str | None:
    for before, word in zip(["", *flags], flags, strict=False):
        if before == "--recipe":
            return word
        if word.startswith("--recipe="):
            return word.partition("=")[2]
    return None


def read_recipe(name: str, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return a recipe's values after those of the recipe that it builds on, with their files.

    Raises:
        InputError: there is no such recipe.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise InputError(
            f"--recipe {name}: there is no such recipe{nearest(name, names)}. "
            f"Recipes: {', '.join(names)}"
        )
    path = folder / f"{name}.yaml"
    values = read_file(path)
    base = values.get("recipe")
    return [*(read_recipe(base, folder) if base else []), (path, values)]


def _word_or_bool(text: str) -> str | bool:
    return text if text in ("all", "non_padding") else string_to_bool(text)


def _unknown(word: str, parser: ArgumentParser) -> str:
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    return f"unknown argument {word!r}{nearest(word.split('=')[0], options)}"


def _as_flags(parser: ArgumentParser, values: dict[str, tuple[Path, Any]]) -> list[str]:
    """Turn arguments of files into flags; what no flag can say becomes a default."""
    actions = {action.dest: action for action in parser._actions}
    flags = []
    for name, (path, value) in values.items():
        if name not in actions:
            raise InputError(f"{path}: unknown argument {name!r}{nearest(name, actions)}")
        action = actions[name]
        if isinstance(value, list) and action.nargs == "+":
            parser.set_defaults(**{name: _items(parser, action, value, path)})
        elif value is None or isinstance(value, dict | list):
            parser.set_defaults(**{name: value})
        else:
            flags.append(f"--{name}={_as_text(value, action)}")
    return flags


def _items(parser: ArgumentParser, action: Action, values: list[Any], path: Path) -> list[Any]:
    try:
        return [parser._get_value(action, str(value)) for value in values]
    except ArgumentError as error:
        raise InputError(f"{path}: {error}") from error


def _as_text(value: Any, action: Action) -> str:
    if isinstance(value, bool) and action.type is not string_to_bool:
        return "yes" if value else "no"  # YAML reads `eval_strategy: no` as false
    return str(value)


def read_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    if path.suffix.lower() not in ARGUMENT_FILES:
        raise InputError(
            f"{path}: the first argument may be a file of arguments ({', '.join(ARGUMENT_FILES)}); "
            "everything else starts with --"
        )
    if not path.is_file():
        raise InputError(f"{path}: there is no such file of arguments")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: is larger than {MOST_BYTES >> 10} KB: no file of arguments is")
    try:
        text = path.read_text(encoding="utf-8")
        values = _json(text, path) if path.suffix.lower() == ".json" else _yaml(text, path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8: {error}") from error
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply for a file of arguments") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold one mapping of argument names to values")
    return values


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def _yaml(text: str, path: Path) -> Any:
    import yaml

    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error


def _check_events(events: Iterable[Any], path: Path) -> None:
    """Refuse aliases, of which a few stand for more text than any memory holds, and great depth."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if kind == "AliasEvent":
            raise InputError(f"{path}: *{event.anchor} is an alias: write the value out")
        if depth > DEEPEST:
            raise RecursionError
