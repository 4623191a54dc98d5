# SPDX-License-Identifier: Apache-2.0
"""The arguments of run_glue.py, from the command line and from one YAML or JSON file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_sam import SAMTrainingArguments
from hf_sam.parts.base import nearest
from shared_scripts.arguments import HubArguments, InputError, check_positive, parse

MAX_SAMPLES = ("max_train_samples", "max_eval_samples", "max_predict_samples")


@dataclass(frozen=True)
class Task:
    """One classification or regression task over one or two texts.

    Attributes:
        name: key in `TASKS`, or None for a task that was read off the user's own files.
        keys: the columns that hold the texts.
        labels: names of the classes in the order of their ids; empty for regression.
        bounds: smallest and largest label of a regression task.
    """

    name: str | None
    keys: tuple[str, ...]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, float] = (float("-inf"), float("inf"))

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers instead of classes."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Number of outputs of the model's head."""
        return max(len(self.labels), 1)


TASKS: dict[str, Task] = {
    str(task.name): task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable")),
        Task("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        Task("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
        Task("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("stsb", ("sentence1", "sentence2"), bounds=(0.0, 5.0)),
        Task("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    )
}


@dataclass
class ModelArguments(HubArguments):
    """Which model, configuration and tokenizer to start from, and whether to train adapters."""

    model_name_or_path: str = field(
        metadata={"help": "Folder with a pretrained model, or its id on the Hub."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration, if it is not the model's own."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, if it is not the model's own."}
    )
    use_fast_tokenizer: bool = field(
        default=True, metadata={"help": "Use a tokenizer backed by the tokenizers library."}
    )
    use_peft: bool = field(
        default=False, metadata={"help": "Train LoRA adapters and the head instead of all weights."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA adapters."})
    lora_alpha: int = field(
        default=16, metadata={"help": "LoRA's scale: an update is multiplied by alpha / r."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules that get an adapter, by the end of their names (query value), or "
            "all-linear; default: peft's choice for the model."
        },
    )

    def __post_init__(self) -> None:
        """Check what no type can say."""
        if self.lora_r < 1:
            raise InputError(f"--lora_r {self.lora_r}: the rank must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"--lora_dropout {self.lora_dropout}: must be in [0, 1)")


@dataclass
class DataTrainingArguments:
    """Which data to train and evaluate on, and how it is prepared."""

    task_name: str | None = field(
        default=None, metadata={"help": "GLUE task: " + ", ".join(TASKS) + "."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Another dataset of the Hub with a `label` column."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of that dataset."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <task>/<split>.parquet, instead of the Hub."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Training data: .csv, .tsv, .json, .jsonl or .parquet."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation data, in the same formats."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Data for --do_predict, in the same formats."}
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Longer inputs are cut to this number of tokens."}
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={"help": "Pad to max_seq_length; if false, to the longest input of each batch."},
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Tokenize again instead of using the cached result."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only the first examples of the training set."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first examples of each validation set."}
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Use only the first examples of each test set."}
    )

    def __post_init__(self) -> None:
        """Check the task, the source and the limits."""
        if self.task_name is not None:
            self.task_name = self.task_name.lower()
            if self.task_name not in TASKS:
                raise InputError(
                    f"--task_name {self.task_name}: unknown task{nearest(self.task_name, TASKS)}. "
                    f"Tasks: {', '.join(TASKS)}"
                )
        self._check_source()
        check_positive(self, "max_seq_length", *MAX_SAMPLES)

    def _check_source(self) -> None:
        files = (self.train_file, self.validation_file, self.test_file)
        if self.data_dir is not None and self.task_name is None:
            raise InputError(
                f"--data_dir {self.data_dir} holds one folder per GLUE task: say which with "
                "--task_name, or name files with --train_file and --validation_file"
            )
        if self.task_name is not None and self.dataset_name is not None:
            raise InputError(
                f"--task_name {self.task_name} and --dataset_name {self.dataset_name}: give one"
            )
        if self.task_name is None and self.dataset_name is None and not any(files):
            raise InputError(
                "no data: give --task_name (a GLUE task), --dataset_name, or "
                "--train_file and --validation_file"
            )


Arguments = tuple[ModelArguments, DataTrainingArguments, SAMTrainingArguments]


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse `[FILE] [--flag value ...]`; flags override the YAML or JSON file.

    Raises:
        InputError: an unknown name, a value of the wrong kind, or a combination that is refused.
    """
    model_args, data_args, args = parse(
        (ModelArguments, DataTrainingArguments, SAMTrainingArguments),
        argv,
        prog="run_glue.py",
        description="Fine-tune a text classifier on a GLUE task, with or without SAM.",
    )
    return model_args, data_args, args
