# SPDX-License-Identifier: Apache-2.0
"""What a script says when something that was given cannot be used."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, why and the remedy."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Return an error's text on one line, cut after `limit` characters."""
    text = " ".join(str(error).split())
    if isinstance(error, BaseException) and (not text or isinstance(error, KeyError | IndexError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 80) -> str:
    """Return a value of a file as an error shows it: as Python writes it, and not too long."""
    return one_line(repr(value), limit)
