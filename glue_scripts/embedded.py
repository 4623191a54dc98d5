# SPDX-License-Identifier: Apache-2.0
"""Embedded data: English-like sentences from a seeded grammar, in GLUE's format, and a tiny BERT.

Three tasks, each with GLUE's columns and label numbers, classes about equally frequent:

* ``cola``: acceptability of one sentence (``sentence``; 1 = acceptable);
* ``mrpc``: do two sentences say the same (``sentence1``, ``sentence2``; 1 = yes);
* ``mnli``: inference (``premise``, ``hypothesis``; 0 entailment, 1 neutral, 2 contradiction). The
  mismatched splits are about nouns and places that the training split does not have.

Everything is a function of the seed: no download, no file. ``python -m glue_scripts.embedded DIR``
writes ``DIR/<task>/<split>.parquet`` and ``DIR/model`` (a tiny BERT with its tokenizer), which
``run_glue.py --data_dir DIR --model_name_or_path DIR/model`` reads.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both are slow to import
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

SENTENCE_COLUMNS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
}
NUM_LABELS: dict[str, int] = {"cola": 2, "mrpc": 2, "mnli": 3}
TASKS: tuple[str, ...] = tuple(SENTENCE_COLUMNS)

Columns = dict[str, list[Any]]
Example = tuple[tuple[str, ...], int]


# Lexicon


@dataclass(frozen=True)
class Genre:
    """Nouns (kind -> its nouns) and places of one kind of text."""

    animate: Mapping[str, tuple[str, ...]]
    things: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]


HOME = Genre(
    animate={
        "animal": ("dog", "cat", "horse", "rabbit"),
        "relative": ("mother", "brother", "uncle", "cousin"),
        "worker": ("farmer", "baker", "nurse", "teacher"),
    },
    things={
        "fruit": ("apple", "pear", "lemon"),
        "tool": ("hammer", "ladder", "rope"),
        "vehicle": ("truck", "boat", "wagon"),
    },
    places=("garden", "kitchen", "barn", "forest", "market", "school"),
)
OFFICE = Genre(
    animate={
        "official": ("judge", "mayor", "senator", "clerk", "lawyer", "minister"),
        "scientist": ("chemist", "biologist", "physicist", "engineer", "geologist"),
        "artist": ("singer", "dancer", "poet", "actor", "sculptor"),
    },
    things={
        "document": ("letter", "report", "contract", "invoice", "novel"),
        "device": ("printer", "laptop", "camera", "phone", "radio"),
        "container": ("basket", "bottle", "drawer", "parcel", "bucket"),
    },
    places=("office", "court", "library", "studio", "station", "theatre", "harbour", "capital"),
)

INTRANSITIVE = ("sleep", "laugh", "wait", "listen", "work", "play", "jump", "walk", "rest", "shout")
ON_ANIMATE = ("visit", "greet", "admire", "watch", "follow", "help")
ON_THINGS = ("carry", "move", "paint", "push", "clean", "lift")
NEVER_WITH_OBJECT = INTRANSITIVE[:4]
NEVER_WITHOUT_OBJECT = ("greet", "admire", "carry")
IRREGULAR_PAST = {"sleep": "slept", "weep": "wept", "hurt": "hurt"}
SAME_VERB = {"help": "assist", "watch": "observe", "follow": "pursue", "greet": "welcome"}
SAME_VERB |= {"push": "shove", "clean": "wash", "lift": "raise", "rest": "relax", "shout": "yell"}
EXCLUDED_VERB = {"help": "hurt", "follow": "avoid", "push": "pull", "lift": "lower"}
EXCLUDED_VERB |= {"sleep": "jump", "laugh": "weep", "rest": "walk", "shout": "wait"}
OPPOSITE = {"big": "small", "old": "young", "slow": "quick", "happy": "sad"}
OPPOSITE |= {"clean": "dirty", "strong": "weak", "tall": "short", "loud": "quiet"}
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}
SAME_ADJECTIVE = {"big": "large", "small": "little", "quick": "fast", "happy": "glad"}
PREPOSITIONS = ("near", "behind", "beside")
TIMES = ("today", "again", "often", "early", "alone")
TENSES = ("present", "past", "future", "progressive", "perfect")


def _nouns(kinds: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [noun for nouns in kinds.values() for noun in nouns]


def _kind(noun: str, genre: Genre) -> str:
    """What the noun is one of: "animal" for "dog"."""
    kinds = {**genre.animate, **genre.things}
    return next(kind for kind, nouns in kinds.items() if noun in nouns)


def _s(word: str) -> str:
    """Plural of a noun, or third person of a verb."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _ed(verb: str) -> str:
    """Past form and participle of a verb."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return IRREGULAR_PAST.get(verb, verb + ("d" if verb.endswith("e") else "ed"))


def _ing(verb: str) -> str:
    """Progressive form of a verb."""
    return (verb[:-1] if verb.endswith("e") else verb) + "ing"


# Structures, and how they are said


@dataclass(frozen=True)
class NounPhrase:
    """A determiner, perhaps an adjective, a noun, and perhaps words after it."""

    noun: str
    plural: bool = False
    determiner: str = "the"
    adjective: str | None = None
    after: str | None = None

    def say(self) -> list[str]:
        """The phrase as words."""
        noun = _s(self.noun) if self.plural else self.noun
        determiner = self.determiner
        if determiner == "a" and (self.adjective or noun)[0] in "aeiou":
            determiner = "an"
        words = (determiner, self.adjective, noun, *(self.after or "").split())
        return [word for word in words if word]


@dataclass(frozen=True)
class Clause:
    """Who does what, to whom, when and where."""

    subject: NounPhrase
    verb: str
    object: NounPhrase | None = None
    tense: str = "present"
    negated: bool = False
    place: str | None = None
    time: str | None = None


def _active(verb: str, tense: str, plural: bool, negated: bool) -> list[str]:
    """Finite verb group in the active voice."""
    auxiliary, form = {
        "present": ("do" if plural else "does", verb),
        "past": ("did", verb),
        "future": ("will", verb),
        "progressive": ("are" if plural else "is", _ing(verb)),
        "perfect": ("have" if plural else "has", _ed(verb)),
    }[tense]
    if negated:
        return [auxiliary, "not", form]
    if tense == "present":
        return [verb if plural else _s(verb)]
    return [_ed(verb)] if tense == "past" else [auxiliary, form]


def _passive(verb: str, tense: str, plural: bool, negated: bool) -> list[str]:
    """Finite verb group in the passive voice."""
    auxiliaries = {
        "present": ["are" if plural else "is"],
        "past": ["were" if plural else "was"],
        "future": ["will", "be"],
        "progressive": ["are" if plural else "is", "being"],
        "perfect": ["have" if plural else "has", "been"],
    }[tense]
    return [auxiliaries[0], *(["not"] if negated else []), *auxiliaries[1:], _ed(verb)]


def say(
    clause: Clause,
    passive: bool = False,
    place_first: bool = False,
    group: Sequence[str] | None = None,
) -> str:
    """The clause as a sentence; only a clause with an object has a passive.

    ``group`` replaces the finite verb group.
    """
    first, second = clause.subject, clause.object
    if passive:
        assert second is not None
        first, second = second, first
    verb = (_passive if passive else _active)(
        clause.verb, clause.tense, first.plural, clause.negated
    )
    words = first.say() + list(group or verb)
    words += (["by"] if passive else []) + (second.say() if second else [])
    place = ["in", "the", clause.place] if clause.place else []
    words = place + words if place_first else words + place
    return _sentence(words + ([clause.time] if clause.time else []))


def _sentence(words: Iterable[str]) -> str:
    return " ".join([*words, "."])


def _draw_phrase(random: Random, nouns: Sequence[str], adjective: float = 0.4) -> NounPhrase:
    """A noun phrase with "the", and an adjective with the given probability."""
    chosen = random.choice(list(OPPOSITE)) if random.random() < adjective else None
    return NounPhrase(random.choice(nouns), random.random() < 0.5, "the", chosen)


def _draw_clause(random: Random, genre: Genre, transitive: bool) -> Clause:
    """A well-formed clause about the genre's nouns, without negation."""
    subject = _draw_phrase(random, _nouns(genre.animate))
    verb, target = random.choice(INTRANSITIVE), None
    if transitive:
        verb = random.choice(ON_ANIMATE + ON_THINGS)
        nouns = _nouns(genre.animate if verb in ON_ANIMATE else genre.things)
        target = _draw_phrase(random, [noun for noun in nouns if noun != subject.noun])
    place = random.choice(genre.places) if random.random() < 0.5 else None
    time = random.choice(TIMES) if random.random() < 0.3 else None
    return Clause(subject, verb, target, random.choice(TENSES), False, place, time)


def _other(random: Random, words: Sequence[str], word: str | None) -> str:
    return random.choice([other for other in words if other != word])


# Acceptability: a well-formed sentence, or one with exactly one fault


def _with_determiner(random: Random, phrase: NounPhrase, right: bool = True) -> NounPhrase:
    """The phrase with a determiner that agrees with its noun, or one that does not."""
    choices = ("these", "many") if phrase.plural == right else ("this", "a", "every")
    return replace(phrase, determiner=random.choice(choices + (("the",) if right else ())))


def _acceptability_clause(random: Random, genre: Genre) -> Clause:
    """A clause whose subject often has another noun between it and the verb."""
    clause = _draw_clause(random, genre, transitive=random.random() < 0.5)
    subject = _with_determiner(random, clause.subject)
    if random.random() < 0.5:
        near = _draw_phrase(random, _nouns(genre.animate), adjective=0.0)
        subject = replace(subject, after=" ".join([random.choice(PREPOSITIONS), *near.say()]))
    target = _with_determiner(random, clause.object) if clause.object else None
    return replace(clause, subject=subject, object=target, negated=random.random() < 0.25)


def _fault_agreement(random: Random, clause: Clause) -> str:
    """The verb has the other number: "the dog near the cats sleep"."""
    if clause.tense in ("past", "future"):
        clause = replace(clause, tense=random.choice(("present", "progressive", "perfect")))
    group = _active(clause.verb, clause.tense, not clause.subject.plural, clause.negated)
    return say(clause, group=group)


def _fault_determiner(random: Random, clause: Clause) -> str:
    """The determiner has the other number: "these dog sleeps"."""
    return say(replace(clause, subject=_with_determiner(random, clause.subject, right=False)))


def _fault_verb_form(random: Random, clause: Clause) -> str:
    """The auxiliary takes another form: "the dog has sleeping"."""
    forms = {"future": str, "progressive": _ing, "perfect": _ed}
    tense = random.choice(list(forms))
    auxiliary = _active(clause.verb, tense, clause.subject.plural, negated=True)[0]
    # "is helped" would be a good passive
    wrong = "future" if tense == "progressive" else _other(random, list(forms), tense)
    negation = ["not"] if clause.negated else []
    return say(clause, group=[auxiliary, *negation, forms[wrong](clause.verb)])


def _fault_order(random: Random, clause: Clause) -> str:
    """Two neighbours of the subject change places: "dog the sleeps"."""
    words = say(clause).split()
    at = random.randrange(1 + bool(clause.subject.adjective))
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _fault_object(random: Random, clause: Clause) -> str:
    """An object too many or too few: "the dog sleeps the apple", "the dog carries today"."""
    verbs = NEVER_WITH_OBJECT if clause.object else NEVER_WITHOUT_OBJECT
    return say(replace(clause, verb=random.choice(verbs)))


FAULTS = (_fault_agreement, _fault_determiner, _fault_verb_form, _fault_order, _fault_object)


def _acceptability(random: Random, genre: Genre) -> Example:
    clause = _acceptability_clause(random, genre)
    if random.random() < 0.5:
        return (say(clause),), 1
    return (random.choice(FAULTS)(random, clause),), 0


# Paraphrase: the same clause said in another way, or with one change of meaning


def _say_differently(random: Random, clause: Clause) -> str:
    """The same meaning: passive, synonyms, the place in front."""
    if random.random() < 0.5:
        clause = _with_synonyms(clause)
    passive = clause.object is not None and random.random() < 0.5
    return say(clause, passive, place_first=clause.place is not None and random.random() < 0.5)


def _with_synonyms(clause: Clause) -> Clause:
    def phrase(given: NounPhrase) -> NounPhrase:
        adjective = given.adjective and SAME_ADJECTIVE.get(given.adjective, given.adjective)
        return replace(given, adjective=adjective)

    return replace(
        clause,
        subject=phrase(clause.subject),
        verb=SAME_VERB.get(clause.verb, clause.verb),
        object=phrase(clause.object) if clause.object else None,
    )


def _change_meaning(random: Random, clause: Clause, genre: Genre) -> Clause:
    """One change that makes the clause say something else."""
    subject, target = clause.subject, clause.object
    changes = [
        replace(clause, negated=not clause.negated),
        replace(clause, tense=_other(random, TENSES, clause.tense)),
        replace(clause, subject=replace(subject, plural=not subject.plural)),
        replace(clause, place=_other(random, genre.places, clause.place)),
    ]
    if clause.verb in EXCLUDED_VERB:
        changes.append(replace(clause, verb=EXCLUDED_VERB[clause.verb]))
    if subject.adjective:
        opposite = replace(subject, adjective=OPPOSITE[subject.adjective])
        changes.append(replace(clause, subject=opposite))
    if target and clause.verb in ON_ANIMATE:
        changes.append(replace(clause, subject=target, object=subject))
    return random.choice(changes)


def _paraphrase(random: Random, genre: Genre) -> Example:
    label = random.randrange(2)
    pair = ("", "")
    while pair[0] == pair[1]:  # not every clause can be said differently
        clause = _draw_clause(random, genre, transitive=random.random() < 0.7)
        other = clause if label else _change_meaning(random, clause, genre)
        pair = say(clause), _say_differently(random, other)
    return (pair if random.random() < 0.5 else pair[::-1]), label


# Inference: a premise, and what follows from it, may be, or cannot be


def _kind_phrase(phrase: NounPhrase, genre: Genre, determiner: str) -> NounPhrase:
    """The kind in place of the noun: "some animals" for "the big dogs"."""
    return NounPhrase(_kind(phrase.noun, genre), phrase.plural, determiner)


def _be(phrase: NounPhrase, adjective: str, tense: str) -> str:
    be = {"past": ("was", "were"), "future": ("will be", "will be")}.get(tense, ("is", "are"))
    return _sentence([*replace(phrase, adjective=None).say(), be[phrase.plural], adjective])


def _entailed(random: Random, clause: Clause, genre: Genre) -> str:
    """Leave something out, name the kind, or say it with other words."""
    subject = clause.subject
    some = _kind_phrase(subject, genre, "some" if subject.plural else "a")
    weaker = [
        replace(clause, subject=some, time=None),
        replace(clause, place=None, time=None),
        replace(clause, subject=replace(subject, adjective=None), time=None),
    ]
    if subject.adjective and random.random() < 0.3:
        return _be(subject, subject.adjective, clause.tense)
    return _say_differently(random, random.choice(weaker))


def _neutral(random: Random, clause: Clause, genre: Genre) -> str:
    """Add or change something that the premise says nothing about."""
    subject = clause.subject
    adjectives = [word for word in OPPOSITE if word != OPPOSITE.get(subject.adjective or "")]
    unknown = _other(random, adjectives, subject.adjective)
    kinds = _nouns(genre.animate)
    options = [
        replace(clause, subject=replace(subject, noun=_other(random, kinds, subject.noun))),
        replace(clause, tense=_other(random, TENSES, clause.tense), time=None),
    ]
    if clause.place is None:
        options.append(replace(clause, place=random.choice(genre.places)))
    if clause.object and clause.verb in ON_ANIMATE:
        options.append(replace(clause, subject=clause.object, object=subject))
    if random.random() < 0.3:
        return _be(subject, unknown, clause.tense)
    return _say_differently(random, random.choice(options))


def _contradicted(random: Random, clause: Clause, genre: Genre) -> str:
    """Deny it, say that none of the kind did it, or say what excludes it."""
    subject = clause.subject
    none = _kind_phrase(subject, genre, "no")
    options = [
        replace(clause, negated=True, time=None),
        replace(clause, subject=none, time=None),
        replace(clause, subject=none, place=None, time=None),
    ]
    if clause.verb in EXCLUDED_VERB:
        options.append(replace(clause, verb=EXCLUDED_VERB[clause.verb], time=None))
    if subject.adjective and random.random() < 0.3:
        return _be(subject, OPPOSITE[subject.adjective], clause.tense)
    return _say_differently(random, random.choice(options))


def _inference(random: Random, genre: Genre) -> Example:
    label = random.randrange(3)
    pair = ("", "")
    while pair[0] == pair[1]:  # entailed by leaving out what was not there
        clause = _draw_clause(random, genre, transitive=random.random() < 0.5)
        pair = say(clause), (_entailed, _neutral, _contradicted)[label](random, clause, genre)
    return pair, label


# Splits in GLUE's format

_DRAW: dict[str, Callable[[Random, Genre], Example]] = {
    "cola": _acceptability,
    "mrpc": _paraphrase,
    "mnli": _inference,
}


def _check(name: str, value: str, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} is unknown, choose one of {allowed}{hint}")


def default_sizes(task: str) -> dict[str, int]:
    """Split -> number of examples, under GLUE's names of the task's splits."""
    _check("task", task, TASKS)
    sizes = {"train": 2000, "validation": 1000, "test": 500}
    if task != "mnli":
        return sizes
    kinds = ("matched", "mismatched")
    held_out = {f"{split}_{kind}": sizes[split] for split in list(sizes)[1:] for kind in kinds}
    return {"train": sizes["train"], **held_out}


def make_task(
    task: str, sizes: Mapping[str, int] | None = None, seed: int = 0, label_noise: float = 0.0
) -> dict[str, Columns]:
    """Split -> columns of one task; no example is in two splits.

    Args:
        task: ``cola``, ``mrpc`` or ``mnli``.
        sizes: number of examples of each split, over the defaults of ``default_sizes``. A held-out
            split does not depend on the size of the training split.
        seed: everything drawn is a function of it.
        label_noise: share of *training* labels replaced by another label; held-out labels are
            right, those of the test splits are hidden (-1) as GLUE's are.

    Raises:
        ValueError: unknown task or split, a negative size, or ``label_noise`` outside [0, 1].
    """
    defaults = default_sizes(task)
    for split, size in (sizes or {}).items():
        _check("split", split, defaults)
        if size < 0:
            raise ValueError(
                f"sizes[{split!r}]={size} is not a number of examples, which is 0 or more"
            )
    if not 0.0 <= label_noise <= 1.0:
        raise ValueError(f"label_noise={label_noise} is not a share, choose it between 0 and 1")
    counts = defaults | dict(sizes or {})
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in sorted(counts, key=lambda name: name == "train"):  # training examples come last
        examples = _draw_split(task, split, counts[split], seed, seen)
        if split == "train":
            examples = _flip_labels(examples, NUM_LABELS[task], label_noise, seed)
        splits[split] = _columns(task, examples, hidden=split.startswith("test"))
    return {split: splits[split] for split in counts}


def _draw_split(
    task: str, split: str, count: int, seed: int, seen: set[tuple[str, ...]]
) -> list[Example]:
    """Examples whose texts are not in ``seen``, which grows by them."""
    random = Random(f"{seed} {task} {split}")
    genre = OFFICE if split.endswith("mismatched") else HOME
    examples: list[Example] = []
    while len(examples) < count:
        texts, label = _DRAW[task](random, genre)
        if texts not in seen:
            seen.add(texts)
            examples.append((texts, label))
    return examples


def _flip_labels(
    examples: list[Example], num_labels: int, share: float, seed: int
) -> list[Example]:
    """Replace the labels of that share of the examples, to the nearest example."""
    random = Random(f"{seed} flip")
    chosen = set(random.sample(range(len(examples)), round(share * len(examples))))
    return [
        (texts, (label + random.randrange(1, num_labels)) % num_labels if row in chosen else label)
        for row, (texts, label) in enumerate(examples)
    ]


def _columns(task: str, examples: Sequence[Example], hidden: bool) -> Columns:
    columns: Columns = {
        name: [texts[position] for texts, _ in examples]
        for position, name in enumerate(SENTENCE_COLUMNS[task])
    }
    columns["label"] = [-1 if hidden else label for _, label in examples]
    columns["idx"] = list(range(len(examples)))
    return columns


def write_task(
    directory: str | Path,
    task: str,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    label_noise: float = 0.0,
) -> list[Path]:
    """Write ``directory/<task>/<split>.parquet``; the arguments are those of ``make_task``."""
    import pyarrow
    import pyarrow.parquet

    paths = []
    for split, columns in make_task(task, sizes, seed, label_noise).items():
        path = Path(directory) / task / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        paths.append(path)
    return paths


# A tokenizer and a model to go with them


def texts_of(task: str, columns: Columns) -> list[str]:
    """All sentences of a split."""
    return [text for name in SENTENCE_COLUMNS[task] for text in columns[name]]


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """A lower-casing BPE tokenizer with BERT's special tokens and sentence pairs.

    (The trainer of WordPiece, BERT's own kind, breaks ties differently in each process.)
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = list(special.values())
    tokenizer = Tokenizer(models.BPE(unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in special.items()},
    )


def tiny_bert(
    tokenizer: PreTrainedTokenizerFast,
    num_labels: int,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    dropout: float = 0.1,
    init_std: float = 0.02,
) -> BertForSequenceClassification:
    """A randomly initialised BERT classifier; the global random state is left as it was."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=init_std,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=num_labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def write_all(
    directory: str | Path,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    label_noise: float = 0.0,
) -> None:
    """Write the three tasks and ``directory/model``, a tiny BERT without head and tokenizer."""
    texts: list[str] = []
    for task in TASKS:
        write_task(directory, task, sizes, seed, label_noise)
        texts += texts_of(task, make_task(task, sizes, seed)["train"])
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(Path(directory) / "model")
    tiny_bert(tokenizer, num_labels=2, seed=seed).bert.save_pretrained(Path(directory) / "model")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write everything to a directory."""
    parser = argparse.ArgumentParser(description="Write the embedded tasks and a tiny BERT.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label_noise", type=float, default=0.0, help="share of training labels")
    arguments = parser.parse_args(argv)
    write_all(arguments.directory, seed=arguments.seed, label_noise=arguments.label_noise)
    print(f"wrote {', '.join(TASKS)} and model to {arguments.directory}")


if __name__ == "__main__":
    main()
