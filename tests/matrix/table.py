# SPDX-License-Identifier: Apache-2.0
"""The matrix as a page."""

from __future__ import annotations

from collections import Counter

from .study import Found, Row

HEAD = """# Every method on every kind of model

`python -m tests.matrix` writes this page; transformers {version}, CPU. Each set-up is a tiny model.

* *loss*: how the losses of parts of a batch make up the batch's, as the first update measured it.
* *at radius 0*: ways of cutting a batch (`msam`, `sam_accumulation="micro"`, `esam`,
  `ascent_fraction`) whose gradient is the plain Trainer's (to {close} of its length), and those
  that say why it is not.
* *at the defaults*: how many methods trained two updates with dropout, and which ones refused.

Numbers point to the words below.

| set-up | loss | at radius 0 | at the defaults |
|---|---|---|---|
"""


def table(rows: dict[str, Row], version: str) -> str:
    """Return the page, with every message once below the table."""
    notes: dict[str, int] = {}

    def cell(found: dict[str, Found], good: str) -> str:
        count = Counter(one.word for one in found.values())
        names = [name for name, one in found.items() if one.word == good]
        parts = [f"{count[good]} {good}" if len(names) > 4 else f"{good}: {', '.join(names)}"]
        parts = parts if names else []
        for name, one in found.items():
            if one.word != good:
                number = notes.setdefault(general(one.message), len(notes) + 1)
                parts.append(f"{one.word}: {name} ({number})")
        return "; ".join(parts)

    lines = [
        f"| {name} | {row.loss} | {cell(row.zero, 'plain')} | {cell(row.defaults, 'trained')} |"
        for name, row in rows.items()
    ]
    below = "\n".join(f"{number}. {message}" for message, number in notes.items())
    wrong = sum(len(row.wrong) for row in rows.values())
    tries = sum(len(row.zero) + len(row.defaults) for row in rows.values())
    total = f"\n\n{len(rows)} set-ups, {tries} runs, {wrong} wrong.\n\n"
    return HEAD.format(version=version, close="1e-4") + "\n".join(lines) + total + below + "\n"


def general(message: str) -> str:
    """Return a message without what follows its first sentence or remedy."""
    return message.replace("|", "/")[:400]
