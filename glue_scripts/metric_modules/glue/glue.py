# SPDX-License-Identifier: Apache-2.0
"""GLUE's metrics for `evaluate.load(<this folder>, task)`: the Hub's `glue` without the Hub.

Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding,
ICLR 2019, arXiv 1804.07461.
"""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Scores = dict[str, float]


def accuracy(predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Share of predictions that equal the reference; both of shape (B,)."""
    return {"accuracy": float(accuracy_score(references, predictions))}


def accuracy_and_f1(predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Accuracy, and F1 of class 1; both arguments of shape (B,)."""
    return accuracy(predictions, references) | {"f1": float(f1_score(references, predictions))}


def matthews(predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Matthews correlation, in [-1, 1]; both arguments of shape (B,)."""
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def pearson_and_spearman(predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Linear and rank correlation, in [-1, 1]; NaN where one argument is constant."""
    return {
        "pearson": float(pearsonr(predictions, references).statistic),
        "spearmanr": float(spearmanr(predictions, references).statistic),
    }


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Scores]] = {
    "cola": matthews,
    "mnli": accuracy,
    "mnli_matched": accuracy,
    "mnli_mismatched": accuracy,
    "mrpc": accuracy_and_f1,
    "qnli": accuracy,
    "qqp": accuracy_and_f1,
    "rte": accuracy,
    "sst2": accuracy,
    "stsb": pearson_and_spearman,
    "wnli": accuracy,
}


class Glue(evaluate.Metric):
    """The metrics that the GLUE benchmark reports for one task (the configuration's name)."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in SCORES:
            raise KeyError(f"unknown GLUE task {self.config_name!r}; tasks: {', '.join(SCORES)}")
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description="The metrics of the GLUE benchmark.",
            citation="Wang et al., GLUE, ICLR 2019, arXiv 1804.07461",
            inputs_description="predictions and references: one number per example",
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://gluebenchmark.com"],
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> Scores:
        return SCORES[self.config_name](predictions, references)
