# SPDX-License-Identifier: Apache-2.0
"""What is learned: the tasks of GLUE, and those that are read off the user's own files."""

from dataclasses import dataclass

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
PROBLEMS = (SINGLE, MULTI, REGRESSION)


@dataclass(frozen=True)
class Task:
    """One classification or regression task over one or two texts.

    Attributes:
        name: key in `TASKS`, or None for a task that was read off the user's own files.
        keys: the columns that hold the texts.
        labels: names of the classes in the order of their ids; empty for regression.
        bounds: smallest and largest label of a regression task.
        is_multi_label: a text may belong to several classes, or to none.
    """

    name: str | None
    keys: tuple[str, ...]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    is_multi_label: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers instead of classes."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Number of outputs of the model's head."""
        return max(len(self.labels), 1)

    @property
    def problem_type(self) -> str:
        """The kind of task, in the words of transformers' configurations."""
        if self.is_regression:
            return REGRESSION
        return MULTI if self.is_multi_label else SINGLE


MNLI_LABELS = ("entailment", "neutral", "contradiction")
TASKS: dict[str, Task] = {
    str(task.name): task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable")),
        Task("mnli", ("premise", "hypothesis"), MNLI_LABELS),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("stsb", ("sentence1", "sentence2"), bounds=(0.0, 5.0)),
        Task("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    )
}
DIAGNOSTIC = Task("ax", ("premise", "hypothesis"), MNLI_LABELS)
KNOWN = TASKS | {"ax": DIAGNOSTIC}
