# SPDX-License-Identifier: Apache-2.0
"""Names of classes: those of the data in the order of the head, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest

from shared_scripts.arguments import InputError
from vision_scripts.labels import class_names, encode_labels, matches
from vision_scripts.part import Part, Source


def part(labels: list[Any], names: tuple[str, ...] | None = None) -> Part:
    return Part([Source(f"f, row {n + 1}", bytes) for n in range(len(labels))], labels, names, "f")


@pytest.mark.parametrize(
    ("labels", "names", "found", "numbers"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        ([3, 10, 3], None, ("3", "10"), [0, 1, 0]),
        ([2, 0], ("x", "y", "z"), ("x", "y", "z"), [2, 0]),
    ],
)
def test_labels_become_numbers(labels: Any, names: Any, found: Any, numbers: Any) -> None:
    own = part(labels, names)
    assert class_names({"train": own}, ()) == found
    assert encode_labels(own, found).tolist() == numbers


def test_a_checkpoint_keeps_the_order_of_its_head() -> None:
    own = part([0, 1], ("a", "b"))
    assert class_names({"train": own}, ("b", "a")) == ("b", "a")
    assert encode_labels(own, ("b", "a")).tolist() == [1, 0]
    assert class_names({"train": own}, ("b", "c")) == ("a", "b")
    assert class_names({"validation": own}, ("c", "b", "a")) == ("c", "b", "a")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 3, 1], ("a", "b", "c"), "f, row 2: label 3 is outside the 3 classes: a, b, c"),
        ([0, -1, 1], ("a", "b"), "f, row 2: label -1 is outside the 2 classes"),
        ([0, 1, -1], None, "f, row 3: label -1 is outside the 2 classes: 0, 1"),
        (["a", "b", None], None, "f, row 3: label None is outside the 2 classes: a, b"),
    ],
)
def test_a_label_outside_the_range(labels: Any, names: Any, message: str) -> None:
    own = part(labels, names)
    with pytest.raises(InputError, match=message):
        encode_labels(own, class_names({"train": own}, ()))


def test_one_class_only() -> None:
    with pytest.raises(InputError, match="f: a classifier needs two classes; all labels are b"):
        class_names({"train": part([1, 1], ("a", "b"))}, ())


def test_a_validation_class_that_training_lacks() -> None:
    sets = {"train": part([0, 1], ("a", "b", "c")), "validation": part([1, 2], ("a", "b", "c"))}
    with pytest.raises(InputError, match="f, row 2: no training image has the class 'c'; .* a, b"):
        class_names(sets, ())


@pytest.mark.parametrize(
    ("own", "known", "found"),
    [
        ("a b", "b a", {"a": "a", "b": "b"}),
        ("Cat DOG", "cat dog", {"Cat": "cat", "DOG": "dog"}),
        ("US us", "us US", {"US": "US", "us": "us"}),
        ("US us", "US", {"US": "US"}),
        ("Us", "US us", {}),
        ("us", "US us", {"us": "us"}),
        ("STRASSE x", "straße y", {"STRASSE": "straße"}),
    ],
)
def test_names_match_exactly_then_without_case(own: str, known: str, found: Any) -> None:
    assert matches(own.split(), known.split()) == found


def test_a_head_of_other_spelling_keeps_its_order() -> None:
    own = part([0, 1], ("cat", "dog"))
    assert class_names({"train": own}, ("Dog", "CAT")) == ("dog", "cat")
    assert encode_labels(own, ("Dog", "CAT")).tolist() == [1, 0]
    sets = {"train": own, "validation": part([0, 1], ("CAT", "Dog"))}
    assert encode_labels(sets["validation"], class_names(sets, ())).tolist() == [0, 1]


def test_a_head_of_other_classes_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    own = {"train": part([0, 1], ("cat", "dog"))}
    for quiet in ((), ("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("dog", "Cat")):
        class_names(own, quiet)
    assert not caplog.text
    for loud in (("car", "bus"), ("cat", "bus"), ("cat", "dog", "fox"), ("LABEL_1", "LABEL_0")):
        assert class_names(own, loud) == ("cat", "dog")
        assert f"It has {len(loud)}: {', '.join(loud)}. The images have 2: cat, dog" in caplog.text


def test_a_head_without_names_is_evaluated_in_order(caplog: pytest.LogCaptureFixture) -> None:
    nameless = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert class_names({"validation": part([0, 1], ("a", "b", "c"))}, nameless) == ("a", "b", "c")
    assert "has no names of classes; its outputs are taken in this order: a, b, c" in caplog.text
    assert class_names({"validation": part([0, 2])}, nameless) == ("0", "1", "2")
    assert class_names({"validation": part(["LABEL_2"])}, nameless) == nameless
    assert class_names({"validation": part(["x"])}, ("x", "y")) == ("x", "y")


def test_a_class_that_is_declared_and_never_seen(caplog: pytest.LogCaptureFixture) -> None:
    assert class_names({"train": part([0, 2], ("a", "b", "c"))}, ()) == ("a", "b", "c")
    assert "f: no image has the classes b, which it declares" in caplog.text


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_label_is_none(empty: Any) -> None:
    own = part(["a", "b", empty])
    assert class_names({"train": own}, ()) == ("a", "b")
    with pytest.raises(InputError, match="f, row 3: label .* is outside the 2 classes: a, b"):
        encode_labels(own, ("a", "b"))
    with pytest.raises(InputError, match="a classifier needs two classes; all labels are missing"):
        class_names({"train": part([empty])}, ())
