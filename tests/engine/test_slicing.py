# SPDX-License-Identifier: Apache-2.0
"""Counting, weighing and cutting batches: nothing lost, nothing twice, nothing guessed."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding

from hf_sam.landscape.data import (
    beginning,
    contiguous_groups,
    denominator,
    examples,
    ratio,
    take,
)

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def flat(sizes: list[int], groups: int) -> list[list[int]]:
    """The groups as numbers of examples, counted through all batches."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        [starts[i] + k for i, piece in group for k in range(sizes[i])[piece]]
        for group in contiguous_groups(sizes, groups)
    ]


@given(SIZES, st.integers(1, 14))
def test_groups_are_contiguous_and_as_equal_as_can_be(sizes: list[int], groups: int) -> None:
    found = flat(sizes, groups)
    assert [k for group in found for k in group] == list(range(sum(sizes)))
    assert len(found) == min(groups, sum(sizes))
    lengths = {len(group) for group in found}
    assert max(lengths) - min(lengths) <= 1


@given(SIZES, st.integers(1, 14))
def test_groups_do_not_depend_on_the_micro_batches(sizes: list[int], groups: int) -> None:
    assert flat(sizes, groups) == flat([sum(sizes)], groups) == flat([1] * sum(sizes), groups)


def test_groups_of_a_batch_that_is_not_a_multiple() -> None:
    assert contiguous_groups([4, 3], 2) == [
        [(0, slice(0, 3))],
        [(0, slice(3, 4)), (1, slice(0, 3))],
    ]
    assert contiguous_groups([2], 5) == [[(0, slice(0, 1))], [(0, slice(1, 2))]]


Pair = namedtuple("Pair", "first second")


def nested(n: int) -> dict[str, Any]:
    """A batch with every kind of field that there is."""
    rows = torch.arange(n * 6.0).view(n, 2, 3)
    return {
        "labels": torch.arange(n),
        "rows": rows,
        "deeper": {"mask": rows > 4, "pair": (rows[:, 0], None)},
        "named": Pair(rows[:, 0], rows[:, 1]),
        "texts": [f"text {i}" for i in range(n)],
        "ragged": [torch.arange(i) for i in range(n)],
        "scale": torch.tensor(3.0),
        "return_dict": True,
        "name": "abc",
        "nothing": None,
        "number": 7,
    }


@given(st.data())
def test_take_keeps_each_example_together(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    batch = nested(n)
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    cut = take(batch, torch.tensor(places, dtype=torch.long))
    assert cut["labels"].tolist() == places
    assert torch.equal(cut["rows"], batch["rows"][places])
    assert torch.equal(cut["deeper"]["mask"], batch["deeper"]["mask"][places])
    assert torch.equal(cut["deeper"]["pair"][0], batch["rows"][places][:, 0])
    assert cut["deeper"]["pair"][1] is None and isinstance(cut["deeper"]["pair"], tuple)
    assert isinstance(cut["named"], Pair)
    assert torch.equal(cut["named"].second, batch["rows"][places][:, 1])
    assert cut["texts"] == [f"text {i}" for i in places]
    assert [len(t) for t in cut["ragged"]] == places
    assert (cut["scale"], cut["return_dict"], cut["name"]) == (3.0, True, "abc")
    assert cut["nothing"] is None and cut["number"] == 7
    assert examples(cut) == len(places)
    assert batch.keys() == cut.keys() and len(batch["labels"]) == n


@given(st.integers(1, 7), st.integers(0, 7), st.integers(0, 7))
def test_a_slice_takes_what_its_positions_take(n: int, start: int, stop: int) -> None:
    batch, piece = nested(n), slice(start, stop)
    one, other = take(batch, piece), take(batch, torch.arange(n)[piece])
    for key in ("labels", "rows"):
        assert torch.equal(one[key], other[key])
    assert one["texts"] == other["texts"]


def test_kinds_of_batches() -> None:
    x, y = torch.arange(4.0), torch.arange(4)
    assert take(x, slice(1, 3)).tolist() == [1, 2]
    assert [t.tolist() for t in take((x, y), torch.tensor([3, 0]))] == [[3, 0], [3, 0]]
    encoding = take(BatchEncoding({"input_ids": x, "labels": y}), slice(0, 2))
    assert isinstance(encoding, BatchEncoding) and encoding["labels"].tolist() == [0, 1]


def test_a_list_of_fields_is_no_list_of_examples() -> None:
    """What torch's default collator makes of pairs; two fields of two examples must not mix."""
    x, y = torch.arange(2.0), torch.arange(2)
    cut = take([x, y], torch.tensor([1]))
    assert [t.tolist() for t in cut] == [[1.0], [1]]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"labels": torch.ones(3), "bias": torch.ones(1, 3)}, [r"field 'bias'", r"\(1, 3\)"]),
        ({"labels": torch.ones(3), "texts": ["a", "b"]}, ["field 'texts'", "list"]),
        ({"labels": torch.ones(3), "raw": {1, 2, 3}}, ["field 'raw'", "set"]),
        ({"labels": torch.ones(3), "deep": {"er": torch.ones(2)}}, ["field 'er'", r"\(2,\)"]),
        ({"labels": torch.ones(3), "pair": (torch.ones(3), torch.ones(2))}, ["field 'pair'"]),
        ([torch.ones(3), torch.ones(2)], ["field 1", r"\(2,\)"]),
    ],
)
def test_a_field_without_rows_is_refused_by_name(batch: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match=".*".join([*words, "no leading size 3", "take"])):
        take(batch, slice(0, 1))


def test_how_many_examples() -> None:
    assert examples(torch.ones(5, 2)) == 5
    assert examples({"flag": True, "scale": torch.tensor(1.0), "x": torch.ones(4, 2)}) == 4
    assert examples({"x": torch.ones(1, 9), "labels": torch.ones(3)}) == 3, "labels decide"
    assert examples((torch.ones(2, 2), torch.ones(2))) == 2
    assert examples(7) == examples({"text": "abc"}) == examples(torch.tensor(1.0)) == 1


def test_weights() -> None:
    labels = torch.tensor([[5, -100, 3], [-100, -100, 1]])
    assert int(denominator({"labels": labels})) == 3
    assert int(denominator({"labels": labels}, shifted=True)) == 2
    whole = torch.tensor([[1, 2], [3, 4]])
    assert int(denominator({"labels": whole, "shift_labels": labels}, shifted=True)) == 3
    assert denominator({"labels": torch.ones(4, 3)}) == 4, "numbers are no tokens"
    assert denominator({"labels": torch.tensor([1, 0, 1])}) == 3
    assert denominator({"x": torch.ones(6, 2)}) == denominator(torch.ones(6)) == 6


@given(st.data())
def test_the_weights_of_parts_add_up(data: st.DataObject) -> None:
    """Groups of any size weigh together what the batch weighs, shifted or not."""
    n, groups = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    rows = data.draw(
        st.lists(
            st.lists(st.sampled_from([-100, 1, 2]), min_size=4, max_size=4), min_size=n, max_size=n
        )
    )
    batch = {"labels": torch.tensor(rows)}
    for shifted in (False, True):
        parts = [take(batch, p) for group in contiguous_groups([n], groups) for _, p in group]
        shares = [ratio(denominator(p, shifted), denominator(batch, shifted)) for p in parts]
        total = float(denominator(batch, shifted))
        assert float(sum(shares)) == pytest.approx(1.0 if total else 0.0, abs=1e-12)


def test_ratios() -> None:
    assert ratio(1, 4) == 0.25 and ratio(0, 0) == 0.0
    found = ratio(torch.tensor(1), torch.tensor(3))
    assert found.dtype == torch.float64 and float(found) == 1 / 3
    assert float(ratio(torch.tensor(0), torch.tensor(0))) == 0.0
    assert float(ratio(1.0, torch.tensor(8))) == 0.125 == float(ratio(torch.tensor(1.0), 8))


@given(st.integers(1, 200), st.integers(1, 100))
def test_beginnings(n: int, percent: int) -> None:
    """ceil(fraction n), whatever the fraction's rounding."""
    assert beginning(n, percent / 100) == slice(0, -(-percent * n // 100))
