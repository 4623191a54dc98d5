# SPDX-License-Identifier: Apache-2.0
"""The embedded data: right labels by an independent reading of the sentences, and GLUE's format."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from glue_scripts import embedded
from glue_scripts.embedded import (
    NUM_LABELS,
    SENTENCE_COLUMNS,
    TASKS,
    default_sizes,
    make_task,
    texts_of,
    tiny_bert,
    train_tokenizer,
    write_all,
    write_task,
)

ROOT = Path(__file__).parents[1]
HOME, OFFICE = embedded.HOME, embedded.OFFICE


def nouns(genre: embedded.Genre) -> list[str]:
    kinds = {**genre.animate, **genre.things}
    return [*kinds, *(noun for of_kind in kinds.values() for noun in of_kind)]


NOUNS = nouns(HOME) + nouns(OFFICE)
PLACES = HOME.places + OFFICE.places
ADJECTIVES = [*embedded.OPPOSITE, *embedded.SAME_ADJECTIVE.values()]
SYNONYMS = {
    other: word
    for words in (embedded.SAME_VERB, embedded.SAME_ADJECTIVE)
    for word, other in words.items()
}
INTRANSITIVE = [*embedded.INTRANSITIVE, "weep", "relax", "yell"]
TRANSITIVE = [*embedded.ON_ANIMATE, *embedded.ON_THINGS, "assist", "observe", "pursue", "welcome"]
TRANSITIVE += ["shove", "wash", "raise", "hurt", "avoid", "pull", "lower"]
FORMS = {  # name of a form -> form -> verb
    "bare": {verb: verb for verb in INTRANSITIVE + TRANSITIVE},
    "third": {embedded._s(verb): verb for verb in INTRANSITIVE + TRANSITIVE},
    "past": {embedded._ed(verb): verb for verb in INTRANSITIVE + TRANSITIVE},
    "ing": {embedded._ing(verb): verb for verb in INTRANSITIVE + TRANSITIVE},
}


def any_of(words: list[str] | tuple[str, ...] | dict[str, str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


# A sentence as a regular expression, written from English and not from the generator.
SINGULAR, PLURAL = any_of(NOUNS), any_of([noun + "s" for noun in NOUNS])
PHRASE = (
    rf"(?:(?:the|this|an?|every|no) (?:{any_of(ADJECTIVES)} )?{SINGULAR}"
    rf"|(?:the|these|many|some|no) (?:{any_of(ADJECTIVES)} )?{PLURAL})(?= )"
)
NEAR = rf"(?: (?:near|behind|beside) the (?:{SINGULAR}|{PLURAL})(?= ))?"
IS_SINGULAR = re.compile(rf"(?:the|this|an?|every|no) (?:{any_of(ADJECTIVES)} )?{SINGULAR}(?= )")
BARE, THIRD, PAST, ING = (any_of(FORMS[name]) for name in ("bare", "third", "past", "ing"))
GROUPS = {  # (singular, tense) -> finite verb group; `not` is noted and left out beforehand
    (True, "present"): rf"(?:does )?(?P<v>{THIRD}|{BARE})",
    (False, "present"): rf"(?:do )?(?P<v>{BARE})",
    (None, "past"): rf"(?:did (?P<v>{BARE})|(?P<w>{PAST}))",
    (None, "future"): rf"will (?P<v>{BARE})",
    (True, "progressive"): rf"is (?P<v>{ING})",
    (False, "progressive"): rf"are (?P<v>{ING})",
    (True, "perfect"): rf"has (?P<v>{PAST})",
    (False, "perfect"): rf"have (?P<v>{PAST})",
}
PASSIVES = {
    (True, "present"): "is",
    (False, "present"): "are",
    (True, "past"): "was",
    (False, "past"): "were",
    (None, "future"): "will be",
    (True, "progressive"): "is being",
    (False, "progressive"): "are being",
    (True, "perfect"): "has been",
    (False, "perfect"): "have been",
}


def lemma(form: str) -> str:
    verbs = [forms[form] for forms in FORMS.values() if form in forms]
    return SYNONYMS.get(verbs[0], verbs[0])


def read(sentence: str) -> tuple | None:
    """Who does what to whom, how, where, when; None if the sentence is not English."""
    place, rest = place_of(sentence)
    time, rest = time_of(rest)
    if not (start := re.match(rf"({PHRASE}{NEAR}) ", rest + " ")):
        return None
    first, rest = start[1], rest[start.end() :]
    singular = bool(IS_SINGULAR.match(first + " "))
    negated, rest = negation_of(rest)
    if negated is None:
        return None
    for (number, tense), group in GROUPS.items():
        found = re.fullmatch(rf"{group}(?: (?P<object>{PHRASE}))?(?P<end> )", rest + " ")
        if number in (singular, None) and found and agrees(rest, tense, singular, negated):
            verb = lemma(next(f for k, f in found.groupdict().items() if k in "vw" and f))
            second = found["object"]
            if (second is not None) == (verb in TRANSITIVE):
                return canonical(first), verb, canonical(second), tense, negated, place, time
    for (number, tense), auxiliary in PASSIVES.items():
        found = re.fullmatch(rf"{auxiliary} ({PAST}) by ({PHRASE}) ", rest + " ")
        if number in (singular, None) and found and lemma(found[1]) in TRANSITIVE:
            agent, verb = canonical(found[2]), lemma(found[1])
            return agent, verb, canonical(first), tense, negated, place, time
    return None


def agrees(group: str, tense: str, singular: bool, negated: bool) -> bool:
    """Do-support exactly under negation; the third person's -s exactly without it."""
    first = group.split()[0]
    if tense not in ("present", "past"):
        return True
    if (first in ("do", "does", "did")) != negated:
        return False
    if tense == "past" or negated:
        return group.split()[1] in FORMS["bare"] if negated else True
    return (first in FORMS["third"]) == singular


def place_of(sentence: str) -> tuple[str | None, str]:
    found = re.search(rf"(^| )in the ({any_of(PLACES)})(?= )", sentence)
    if not found:
        return None, sentence.removesuffix(" .")
    rest = (sentence[: found.start()] + sentence[found.end() :]).strip()
    return found[2], rest.removesuffix(".").strip()


def time_of(rest: str) -> tuple[str | None, str]:
    last = rest.split()[-1]
    return (last, rest.removesuffix(last).strip()) if last in embedded.TIMES else (None, rest)


def negation_of(group: str) -> tuple[bool | None, str]:
    """Whether the second word is the only "not", and the group without it."""
    words = group.split()
    if "not" not in words:
        return False, group
    if words.index("not") != 1 or words.count("not") > 1:
        return None, group
    return True, " ".join(words[:1] + words[2:])


def canonical(phrase: str | None) -> str | None:
    """Synonyms of adjectives made one."""
    return phrase and " ".join(SYNONYMS.get(word, word) for word in phrase.split())


def rows(task: str, split: str, size: int = 400, seed: int = 0, noise: float = 0.0) -> list[tuple]:
    columns = make_task(task, {split: size}, seed, noise)[split]
    names = (*SENTENCE_COLUMNS[task], "label")
    return list(zip(*(columns[name] for name in names), strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_acceptability_labels_are_right(seed: int) -> None:
    """A reader that knows English and not the generator judges alike."""
    for sentence, label in rows("cola", "validation", seed=seed):
        assert (read(sentence) is not None) == bool(label), sentence


@pytest.mark.parametrize("seed", [0, 1])
def test_paraphrase_labels_are_right(seed: int) -> None:
    """Two sentences say the same exactly when their readings are equal."""
    for first, second, label in rows("mrpc", "validation", seed=seed):
        readings = read(first), read(second)
        assert None not in readings, (first, second)
        assert (readings[0] == readings[1]) == bool(label), (first, second)


@pytest.mark.parametrize("split", ["validation_matched", "validation_mismatched"])
def test_inference_labels_are_right(split: str) -> None:
    genre = OFFICE if split.endswith("mismatched") else HOME
    for premise, hypothesis, label in rows("mnli", split):
        assert relation(premise, hypothesis, genre) == label, (premise, hypothesis)


def relation(premise: str, hypothesis: str, genre: embedded.Genre) -> int:
    """0 if the hypothesis follows from the premise, 2 if it cannot hold with it, else 1."""
    said = read(premise)
    assert said is not None, premise
    subject, verb, target, tense, negated, place, time = said
    assert not negated, "premises are positive"
    is_adjective = re.fullmatch(
        rf"(the \w+) (?:is|are|was|were|will be) ({any_of(ADJECTIVES)}) \.", hypothesis
    )
    if is_adjective:
        of_subject = subject.split()[1:-1]
        if of_subject == [is_adjective[2]]:
            return 0
        return 2 if of_subject == [embedded.OPPOSITE[is_adjective[2]]] else 1
    claim = read(hypothesis)
    assert claim is not None, hypothesis
    who, does, whom, when, denied, where, moment = claim
    holds = [
        covers(who, subject, genre),
        whom == target,
        when == tense,
        where in (None, place),
        moment in (None, time),
    ]
    against = denied or who.startswith("no ") or does == embedded.EXCLUDED_VERB.get(verb)
    if against and all(holds):
        return 2
    return 0 if all(holds) and does == verb and not against else 1


def covers(general: str, special: str, genre: embedded.Genre) -> bool:
    """Whether "some animals" or "the dogs" is true of "the big dogs"."""
    determiner, *adjective, noun = general.split()
    _, *known, known_noun = special.split()
    if noun.endswith("s") != known_noun.endswith("s"):
        return False
    if determiner in ("a", "an", "some", "no"):
        return noun.removesuffix("s") == embedded._kind(known_noun.removesuffix("s"), genre)
    return noun == known_noun and adjective in ([], known)


def test_the_reader_itself() -> None:
    """It is strict, or the tests above would pass on anything."""
    good = "the dog near the cats sleeps in the barn often ."
    assert read(good) == ("the dog near the cats", "sleep", None, "present", False, "barn", "often")
    assert read("the apple has not been washed by the glad dogs .") == (
        *("the happy dogs", "clean", "the apple", "perfect", True),
        *(None, None),
    )
    bad = "dog near the cats sleep|these dog sleeps|dogs the sleep|dog sleeps the apple|dog greets"
    bad += "|dog has sleeping|dog is sleep|dog will slept|dogs does not sleep|dog not sleeps"
    bad += "|dog does sleep|dog sleep|dog small sleeps"
    assert [line for line in bad.split("|") if read(f"the {line} .") or read(f"{line} .")] == []


@pytest.mark.parametrize("task", TASKS)
def test_the_format_is_glues(task: str) -> None:
    splits = make_task(task, {name: 50 for name in default_sizes(task)})
    held_out = ("validation", "test")
    if task == "mnli":
        kinds = ("matched", "mismatched")
        assert set(splits) == {"train", *(f"{s}_{k}" for s in held_out for k in kinds)}
    else:
        assert set(splits) == {"train", *held_out}
    for name, columns in splits.items():
        assert list(columns) == [*SENTENCE_COLUMNS[task], "label", "idx"]
        assert columns["idx"] == list(range(50))
        hidden = name.startswith("test")
        assert set(columns["label"]) == ({-1} if hidden else set(range(NUM_LABELS[task])))


@pytest.mark.parametrize("task", TASKS)
def test_no_example_is_in_two_splits_or_twice(task: str) -> None:
    splits = make_task(task, {"train": 1500})
    names = SENTENCE_COLUMNS[task]
    texts = [row for c in splits.values() for row in zip(*(c[n] for n in names), strict=True)]
    assert max(Counter(texts).values()) == 1


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_about_equally_frequent(task: str) -> None:
    counts = Counter(make_task(task, {"train": 2000})["train"]["label"])
    assert min(counts.values()) > 0.9 * 2000 / NUM_LABELS[task]


def test_mismatched_sentences_are_about_other_things() -> None:
    splits = make_task("mnli")
    words = {
        name: {word for text in texts_of("mnli", splits[name]) for word in text.split()}
        for name in ("train", "validation_matched", "validation_mismatched")
    }
    assert not set(nouns(OFFICE)) & (words["train"] | words["validation_matched"])
    assert not set(nouns(HOME)) & words["validation_mismatched"]


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_means_the_same_data(task: str) -> None:
    assert make_task(task, {"train": 200}, seed=3) == make_task(task, {"train": 200}, seed=3)
    assert make_task(task, seed=3)["train"] != make_task(task, seed=4)["train"]


def test_data_are_equal_in_every_process() -> None:
    """No order of a set gets in."""
    code = (
        "import json; from glue_scripts.embedded import TASKS, make_task\n"
        "print(json.dumps([make_task(task, {'train': 300}, 5, 0.2) for task in TASKS]))"
    )
    digests = {
        hashlib.sha256(
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                check=True,
            ).stdout
        ).hexdigest()
        for hash_seed in "12"
    }
    assert len(digests) == 1


def test_validation_does_not_depend_on_the_size_of_training() -> None:
    small, large = (make_task("mrpc", {"train": size}, label_noise=0.3) for size in (50, 500))
    assert small["validation"] == large["validation"]
    assert len(small["train"]["label"]) == 50


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_label_noise_flips_that_share_of_the_training_labels(task: str, noise: float) -> None:
    right, noisy = (make_task(task, {"train": 500}, label_noise=share) for share in (0.0, noise))
    pairs = list(zip(right["train"]["label"], noisy["train"]["label"], strict=True))
    assert sum(a != b for a, b in pairs) == round(500 * noise)
    assert set(noisy["train"]["label"]) == set(range(NUM_LABELS[task]))
    for split in right:
        for name in right[split]:
            if (split, name) != ("train", "label"):
                assert right[split][name] == noisy[split][name]


def test_flipped_labels_take_every_other_class() -> None:
    right, noisy = (make_task("mnli", {"train": 600}, label_noise=share) for share in (0.0, 0.5))
    pairs = zip(right["train"]["label"], noisy["train"]["label"], strict=True)
    changes = Counter((a, b) for a, b in pairs if a != b)
    assert len(changes) == 6 and min(changes.values()) > 25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "mrcp"}, ["task='mrcp'", "cola", "did you mean 'mrpc'"]),
        ({"task": "mnli", "sizes": {"validation": 5}}, ["split='validation'", "_matched"]),
        ({"task": "cola", "sizes": {"train": -1}}, ["sizes['train']=-1", "0"]),
        ({"task": "cola", "label_noise": 1.5}, ["label_noise=1.5", "between 0 and 1"]),
        ({"task": "cola", "label_noise": float("nan")}, ["label_noise=nan"]),
    ],
)
def test_bad_arguments(arguments: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make_task(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_written_files_are_what_was_made(tmp_path: Path) -> None:
    import pyarrow.parquet

    sizes = {"train": 60, "validation_mismatched": 20}
    paths = write_task(tmp_path, "mnli", sizes, seed=2, label_noise=0.2)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        f"mnli/{split}.parquet" for split in default_sizes("mnli")
    }
    made = make_task("mnli", sizes, seed=2, label_noise=0.2)
    for path in paths:
        assert pyarrow.parquet.read_table(path).to_pydict() == made[path.stem]


def test_the_tokenizer_knows_every_word_and_pairs() -> None:
    columns = make_task("mrpc", {"train": 500})["train"]
    texts = texts_of("mrpc", columns)
    tokenizer = train_tokenizer(texts)
    again = train_tokenizer(random.sample(texts, len(texts)))
    assert tokenizer.get_vocab() == again.get_vocab(), "the order of the texts matters"
    first, second = columns["sentence1"][0], columns["sentence2"][0].upper()
    tokens = tokenizer(first, second)
    assert tokenizer.decode(tokens["input_ids"]) == f"[CLS] {first} [SEP] {second.lower()} [SEP]"
    split = tokens["token_type_ids"].index(1)
    assert tokens["token_type_ids"] == [0] * split + [1] * (len(tokens["input_ids"]) - split)
    assert tokens["input_ids"][split - 1] == tokenizer.sep_token_id
    assert tokenizer("%")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer.pad([tokens, tokenizer("the")])["input_ids"][1][-1] == tokenizer.pad_token_id
    longest = max(texts, key=len)
    assert len(tokenizer(longest, longest)["input_ids"]) <= tokenizer.model_max_length


def test_a_seed_means_the_same_model() -> None:
    tokenizer = train_tokenizer(texts_of("cola", make_task("cola", {"train": 100})["train"]))
    before = torch.get_rng_state()
    models = [tiny_bert(tokenizer, 3, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers moved"
    one, same, other = (model.classifier.weight for model in models)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.shape == (3, 64)


@pytest.mark.parametrize("task", TASKS)
def test_the_written_model_reads_the_written_data(task: str, tmp_path: Path) -> None:
    """As run_glue.py does: by folder, with the task's own number of labels."""
    write_all(tmp_path, {"train": 40}, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=NUM_LABELS[task]
    )
    texts = make_task(task, {"train": 40}, seed=1)["train"]
    batch = tokenizer(
        *(texts[name][:8] for name in SENTENCE_COLUMNS[task]), padding=True, return_tensors="pt"
    )
    assert model(**batch).logits.shape == (8, NUM_LABELS[task])
    assert {p.parent.name for p in tmp_path.glob("*/train.parquet")} == set(TASKS)


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every method gets a row; the files hold all numbers; what cannot differ does not."""
    from matplotlib.image import imread

    from glue_scripts import demo

    seeds, methods = ["1", "2"], ["none", "sam", "asam"]
    options = ["--epochs", "1", "--output_dir", str(tmp_path)]
    demo.main(["--seeds", *seeds, "--methods", *methods, *options])
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in results["runs"]] == [
        (method, int(seed)) for seed in seeds for method in methods
    ]
    for method in methods:
        accuracies = [r["validation_accuracy"] for r in results["runs"] if r["method"] == method]
        mean = results["summary"][method]["validation_accuracy"]["mean"]
        assert mean == pytest.approx(sum(accuracies) / 2)
        assert re.search(rf"{method} +{mean:.1f} ±", shown)
    extra = results["peak_memory_mb"]["sam"] - results["peak_memory_mb"]["none"]
    assert 0 < extra < 1, "SAM keeps one copy of some 90 000 weights"
    assert {"command", "versions", "hardware", "setting"} <= set(results)
    assert imread(tmp_path / "demo.png").std() > 0.05
