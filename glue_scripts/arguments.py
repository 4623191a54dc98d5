# SPDX-License-Identifier: Apache-2.0
"""The arguments of run_glue.py, from the command line and from one YAML or JSON file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from glue_scripts.tasks import DIAGNOSTIC, KNOWN, PROBLEMS, TASKS
from hf_sam import SAMTrainingArguments
from hf_sam.parts.base import nearest
from shared_scripts.arguments import HubArguments, check_positive, parse
from shared_scripts.errors import InputError
from shared_scripts.hold_out import check_share

MAX_SAMPLES = ("max_train_samples", "max_eval_samples", "max_predict_samples")


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
        default=None,
        metadata={
            "help": "GLUE task: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli; several with "
            "commas, or all; ax: the diagnostic set, for a model trained on MNLI."
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What the labels of your own data are: single_label_classification, "
            "multi_label_classification (lists of classes) or regression; default: as they look."
        },
    )
    text_column_names: list[str] | None = field(
        default=None,
        metadata={"help": "The one or two columns of your own data that hold the texts."},
    )
    label_column_name: str = field(
        default="label", metadata={"help": "The column of your own data that holds the labels."}
    )
    seeds: list[int] | None = field(
        default=None,
        metadata={
            "help": "Repeat the whole run with each of these seeds, in OUTPUT_DIR/seed-N, and "
            "write the mean and the spread."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Another dataset of the Hub, for text classification."}
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
    train_val_split: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate on this share of the training set and do not read the validation "
            "set, as for choosing a radius."
        },
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
            self._check_task(self.task_name.lower())
        if self.problem_type is not None and self.problem_type not in PROBLEMS:
            raise InputError(
                f"--problem_type {self.problem_type}: unknown"
                f"{nearest(self.problem_type, PROBLEMS)}. Allowed: {', '.join(PROBLEMS)}"
            )
        self._check_columns()
        self._check_source()
        check_positive(self, "max_seq_length", *MAX_SAMPLES)
        check_share(self.train_val_split)

    def _check_columns(self) -> None:
        if self.text_column_names is None:
            return
        names = [name for word in self.text_column_names for name in word.split(",") if name]
        if not 1 <= len(names) <= 2:
            raise InputError(f"--text_column_names {' '.join(names)}: give one column or two")
        self.text_column_names = names

    def _check_task(self, wanted: str) -> None:
        names = list(TASKS) if wanted == "all" else wanted.split(",")
        for name in names:
            if name not in KNOWN:
                raise InputError(
                    f"--task_name {name}: unknown task{nearest(name, KNOWN)}. "
                    f"Tasks: {', '.join(KNOWN)}, all"
                )
        self.task_name = ",".join(names)
        own = ("problem_type", "text_column_names")
        given = [name for name in own if getattr(self, name) is not None]
        if given:
            raise InputError(
                f"--{given[0]} is for your own data, and --task_name {wanted} says it itself: "
                "give one of the two"
            )

    @property
    def tasks(self) -> list[str]:
        """The GLUE tasks of this call."""
        return self.task_name.split(",") if self.task_name is not None else []

    def _check_source(self) -> None:
        files = (self.train_file, self.validation_file, self.test_file)
        if self.data_dir is not None and self.task_name is None:
            raise InputError(
                f"--data_dir {self.data_dir} holds one folder per GLUE task: say which with "
                "--task_name, or name files with --train_file and --validation_file"
            )
        if len(self.tasks) > 1 and any(files):
            raise InputError(
                f"--task_name {self.task_name}: files are for one task; give --data_dir, or "
                "neither for the Hub"
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
    if len(data_args.seeds or []) == 1:
        args.seed = (data_args.seeds or [])[0]
    if DIAGNOSTIC.name in data_args.tasks and (args.do_train or args.do_eval):
        raise InputError(
            "--task_name ax: it has only a test set, whose labels are secret; train on mnli, and "
            "give that model and --do_predict alone"
        )
    return model_args, data_args, args
