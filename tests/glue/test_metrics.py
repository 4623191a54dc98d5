# SPDX-License-Identifier: Apache-2.0
"""GLUE's metrics against numbers computed by hand, offline."""

import numpy as np
import pytest
from transformers import EvalPrediction

from glue_scripts.metrics import LOCAL_MODULE, load_metric, metric_function
from glue_scripts.tasks import TASKS, Task

PREDICTIONS = [1, 1, 1, 0, 0, 1]
REFERENCES = [1, 1, 0, 0, 1, 1]
# 3 true positives, 1 true negative, 1 false positive, 1 false negative
ACCURACY = 4 / 6
F1 = 6 / 8
MATTHEWS = (3 * 1 - 1 * 1) / np.sqrt(4 * 4 * 2 * 2)

SCORES = {
    **dict.fromkeys(("mnli", "qnli", "rte", "sst2", "wnli"), {"accuracy": ACCURACY}),
    **dict.fromkeys(("mrpc", "qqp"), {"accuracy": ACCURACY, "f1": F1}),
    "cola": {"matthews_correlation": MATTHEWS},
}


@pytest.mark.parametrize("task", SCORES)
def test_classification(task: str) -> None:
    scores = load_metric(task).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert scores == pytest.approx(SCORES[task])


def test_correlations() -> None:
    scores = load_metric("stsb").compute(predictions=[1, 2, 3, 10], references=[1, 2, 4, 3])
    # means 4 and 2.5; sums of products 4.5 + 1 - 1.5 + 3, squares 50 and 5; ranks 1234, 1243
    assert scores == pytest.approx({"pearson": 7 / np.sqrt(50 * 5), "spearmanr": 0.8})


def test_unknown_task_of_the_metric() -> None:
    with pytest.raises(KeyError, match="unknown GLUE task"):
        load_metric("ax")


def test_compute_metrics_takes_logits_and_adds_the_mean() -> None:
    logits = np.eye(2)[PREDICTIONS]
    compute = metric_function(TASKS["mrpc"], [0, 1])
    scores = compute(EvalPrediction(predictions=logits, label_ids=np.array(REFERENCES)))
    expected = {"accuracy": ACCURACY, "f1": F1, "combined_score": (ACCURACY + F1) / 2}
    assert scores == pytest.approx(expected)
    hidden = (logits, np.zeros((6, 3)))
    assert compute(EvalPrediction(predictions=hidden, label_ids=np.array(REFERENCES))) == scores


def test_f1_is_of_the_task_s_own_class_in_any_order_of_the_head() -> None:
    swapped = 1 - np.array([PREDICTIONS, REFERENCES])
    compute = metric_function(TASKS["mrpc"], [1, 0])
    scores = compute(EvalPrediction(predictions=np.eye(2)[swapped[0]], label_ids=swapped[1]))
    assert (scores["accuracy"], scores["f1"]) == pytest.approx((ACCURACY, F1))


def test_own_tasks() -> None:
    classes = metric_function(Task(None, ("text",), ("x", "y")), [0, 1])
    logits = np.eye(2)[PREDICTIONS]
    scores = classes(EvalPrediction(predictions=logits, label_ids=np.array(REFERENCES)))
    assert scores == pytest.approx({"accuracy": ACCURACY})
    numbers = metric_function(Task(None, ("text",)), [0])
    outputs = np.array([[1.0], [2.0]])
    scores = numbers(EvalPrediction(predictions=outputs, label_ids=np.array([1.0, 4.0])))
    assert scores == pytest.approx({"mse": 2.0})


def test_the_hub_s_module_is_code_that_runs_only_where_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then it comes first, and the local one when it cannot be had."""
    asked = []

    def load(path: str, task: str, **options: object) -> str:
        asked.append(path)
        if path == "glue":
            raise ConnectionError("no network")
        return f"local {task}"

    monkeypatch.setattr("evaluate.load", load)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    assert load_metric("cola") == "local cola"
    assert asked == [str(LOCAL_MODULE)]
    assert load_metric("cola", remote=True) == "local cola"
    assert asked[1:] == ["glue", str(LOCAL_MODULE)]
