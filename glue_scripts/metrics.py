# SPDX-License-Identifier: Apache-2.0
"""GLUE's own metrics, from the module in this folder or, if its code is trusted, from the Hub's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glue_scripts.tasks import Task

if TYPE_CHECKING:
    from evaluate import EvaluationModule
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)

GLUE_METRICS = {
    "ax": ["matthews_correlation"],
    "cola": ["matthews_correlation"],
    "mrpc": ["accuracy", "f1"],
    "qqp": ["accuracy", "f1"],
    "stsb": ["pearson", "spearmanr"],
}  # all others: accuracy
METRIC_OF = {"ax": "cola"}  # GLUE scores its diagnostic set with the Matthews correlation
LOCAL_MODULE = Path(__file__).parent / "metric_modules" / "glue" / "glue.py"


def load_metric(task_name: str, remote: bool = False) -> EvaluationModule:
    """Load GLUE's metric for a task through `evaluate`.

    Args:
        task_name: of GLUE.
        remote: take the Hub's module, which is code that is fetched and run, where it can be had.
    """
    import evaluate
    from huggingface_hub import is_offline_mode

    if remote and not is_offline_mode():  # `evaluate` itself does not look at HF_HUB_OFFLINE
        try:
            return evaluate.load("glue", task_name, keep_in_memory=True)
        except Exception as error:  # the libraries below have many names for no connection
            logger.info("the Hub's metric module cannot be had (%s): using the local one", error)
    return evaluate.load(str(LOCAL_MODULE), task_name, keep_in_memory=True)


def predicted(outputs: np.ndarray | tuple[np.ndarray, ...], task: Task) -> np.ndarray:
    """Turn a model's outputs, logits of shape (B, C), into what it predicts.

    Returns:
        Classes or numbers of shape (B,); for several classes per text, 0 or 1 of shape (B, C).
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    if task.is_regression:
        return np.asarray(logits[:, 0])
    if task.is_multi_label:
        return (logits > 0).astype(int)  # a probability above one half
    return np.asarray(np.argmax(logits, axis=1))


def metric_names(task: Task) -> list[str]:
    """Return the names of everything that `metric_function` measures for a task."""
    if task.name is not None:
        names = GLUE_METRICS.get(task.name, ["accuracy"])
        return [*names, "combined_score"] if len(names) > 1 else names
    if task.is_regression:
        return ["mse"]
    return ["accuracy", "f1"] if task.is_multi_label else ["accuracy"]


def metric_function(
    task: Task, order: list[int], remote: bool = False
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the trainer's `compute_metrics`; several scores also give their mean.

    Args:
        task: GLUE's (its own metrics, and `combined_score` for more than one), or one of the
            user's own: accuracy; with several classes per text also the micro-averaged F1; or the
            mean squared error.
        order: id of a class in the task -> id in the model; F1 needs the task's own.
        remote: whether code of the Hub may run.
    """
    name = METRIC_OF.get(task.name or "", task.name)
    metric = load_metric(name, remote) if name is not None else None
    back = np.argsort(order)

    def compute(evaluation: EvalPrediction) -> dict[str, float]:
        predictions = predicted(evaluation.predictions, task)
        labels = np.asarray(evaluation.label_ids)
        if metric is None:
            return _own_score(task, predictions, labels)
        if not task.is_regression:
            predictions, labels = back[predictions], back[labels]
        scores = metric.compute(predictions=predictions, references=labels)
        if len(scores) > 1:
            scores["combined_score"] = float(np.mean(list(scores.values())))
        return scores

    return compute


def _own_score(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if task.is_regression:
        return {"mse": float(np.mean((predictions - labels) ** 2))}
    if not task.is_multi_label:
        return {"accuracy": float(np.mean(predictions == labels))}
    same = predictions == labels
    hits, wrong = np.sum(same & (labels == 1)), np.sum(~same)
    return {
        "accuracy": float(np.mean(same.all(axis=1))),
        "f1": float(2 * hits / max(2 * hits + wrong, 1)),
    }
