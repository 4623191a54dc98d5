# SPDX-License-Identifier: Apache-2.0
"""What is looked at in a file of texts before a library reads it: encoding, length, depth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shared_scripts.errors import InputError

LONGEST_LINE = 2**26
"""Bytes; a line is a row, and nothing that is trained on is as long."""
DEEPEST = 100
"""Of brackets within brackets: the readers of JSON call themselves for each, until they crash."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def check_unpacked(path: Path) -> None:
    """Refuse an archive under another name, which the datasets library would unpack, however large.

    Raises:
        InputError: it is one.
    """
    from datasets.utils.extract import Extractor

    packed = Extractor.infer_extractor_format(str(path))
    if packed:
        raise InputError(f"{path}: is a packed file ({packed}): unpack it first")


def check_text(path: Path, nested: bool) -> None:
    """Find the first line that cannot be read: the readers name neither file nor line.

    Args:
        path: of the file.
        nested: it is JSON, whose brackets are counted.

    Raises:
        InputError: a line is not UTF-8, longer than 64 MB or nested more than 100 times.
    """
    depth = 0
    for number, line in _lines(path):
        if len(line) > LONGEST_LINE:
            most = f"{LONGEST_LINE >> 20} MB"
            raise InputError(f"{path}: line {number} is longer than {most}: no row of a table is")
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            wide = number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
            raise InputError(
                f"{path}: cannot be read: line {number} is not UTF-8 (byte "
                f"0x{line[error.start]:02x}); save the file as UTF-8, for example: iconv -f "
                f"{'utf-16' if wide else 'latin1'} -t utf-8 {path.name} > utf8-{path.name}"
            ) from error
        if nested:
            highest, depth = _depths(line, depth)
            if highest > DEEPEST:
                raise InputError(
                    f"{path}: line {number} is nested more than {DEEPEST} times: no row is"
                )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines, of one that is too long only so much that it shows."""
    with path.open("rb") as file:
        number = 1
        while line := file.readline(LONGEST_LINE + 1):
            yield number, line
            number += 1


def _depths(line: bytes, depth: int) -> tuple[int, int]:
    """Return how deep a line of JSON goes, at most, and where it ends."""
    bare = STRING.sub(b"", line)
    opened = bare.count(b"[") + bare.count(b"{")
    after = depth + opened - bare.count(b"]") - bare.count(b"}")
    if depth + opened <= DEEPEST:
        return depth + opened, after
    highest = depth
    for sign in re.findall(rb"[\[{\]}]", bare):
        depth += 1 if sign in b"[{" else -1
        highest = max(highest, depth)
    return highest, after
