# SPDX-License-Identifier: Apache-2.0
"""The report: what is said of runs, from which folders they come, and that the page is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hf_sam import cli
from hf_sam.compare import pictures, summary
from hf_sam.compare.runs import Run, by_setting, choose_metric, read_all

GAINS = (1.9, 2.5, 1.4, 2.2, 1.6)
BETTER = "better in 5 of 5 seeds, +1.92 ± 0.44 points"
NOTHING = "No method is better than none beyond noise"


def a_run(method: str, seed: int, accuracy: float, **others: Any) -> Run:
    log = [
        {"epoch": e, "loss": 1 / e, "eval_accuracy": accuracy, "compare/sharpness": 0.1}
        for e in (1.0, 2.0)
    ]
    values: dict[str, Any] = {
        "setting": {},
        "metrics": {"eval_loss": 0.5, "eval_accuracy": accuracy},
        "log": log,
        "updates": 10,
        "seconds_per_update": 2.0 if method != "none" else 1.0,
        "memory_mb": 110.0 if method != "none" else 100.0,
        "command": f"python script.py --sam {method} --seed {seed}",
        "versions": {"torch": "2"},
    }
    return Run(method, seed, **(values | others))


def some_runs(count: int = 5, sign: int = 1, **others: Any) -> list[Run]:
    plain = [a_run("none", seed, 0.80 + seed / 1000, **others) for seed in range(count)]
    gains = zip(plain, GAINS, strict=False)
    return plain + [
        a_run("sam:rho=0.1", run.seed, run.metrics["eval_accuracy"] + sign * gain / 100, **others)
        for run, gain in gains
    ]


def test_a_line() -> None:
    none, sam = summary.lines_of(some_runs(), summary.scale_of(some_runs(), None))
    assert none.difference is None and none.time == none.memory == 1.0
    assert sam.difference is not None
    assert sam.difference.values == pytest.approx(GAINS)
    assert (sam.seconds, sam.time, sam.memory) == pytest.approx((2.0, 2.0, 1.1))
    assert sam.scores == pytest.approx([80 + seed / 10 + GAINS[seed] for seed in range(5)])


@pytest.mark.parametrize(
    ("count", "sign", "words"),
    [
        (5, 1, f"sam:rho=0.1 beats none: {BETTER}, at 2.00 times the time."),
        (5, -1, f"{NOTHING} in 5 seeds; worse beyond noise: sam:rho=0.1 (−1.92 points)."),
        (2, 1, "2 seeds are too few to tell a difference from noise; run at least 3, better 5."),
        (1, 1, "One seed is too few to tell a difference from noise; run at least 3, better 5."),
        (5, 0, f"{NOTHING} in 5 seeds."),
    ],
)
def test_the_verdict(count: int, sign: int, words: str) -> None:
    runs = some_runs(count, sign)
    assert summary.verdict(summary.lines_of(runs, summary.scale_of(runs, None)), " points") == words


def test_a_method_with_too_few_seeds_is_not_judged() -> None:
    runs = [*some_runs(), a_run("looksam", 0, 0.99)]
    words = summary.verdict(summary.lines_of(runs, summary.scale_of(runs, None)), " points")
    assert words.endswith("; too few seeds to tell: looksam.")


def test_runs_with_other_arguments_are_compared_apart() -> None:
    """And what the arguments do to none itself is said, seed by seed."""
    noisy = [
        a_run(run.method, run.seed, run.metrics["eval_accuracy"] - 0.1, setting={"file": "noisy"})
        for run in some_runs()
    ]
    found = summary.summarise([*some_runs(setting={"same": "1"}), *noisy], "hf-sam")
    first, second = found["settings"]
    assert (first["name"], second["name"]) == (
        "default file, same=1",
        "file=noisy, default same",
    )
    assert first["verdict"] == second["verdict"]
    assert first["baseline"] == ""
    assert "worse in 5 of 5 seeds, −10.00 ± 0.00 points" in second["baseline"]
    assert len(by_setting(some_runs())) == 1


def test_time_on_a_cpu_is_in_cpu_seconds() -> None:
    """What other programs took is no price; where CPU seconds are missing, the clock is all."""
    busy = {"seconds_per_update": 9.0}
    runs = [
        a_run("none", 1, 0.80, cpu_seconds_per_update=1.0),
        a_run("sam", 1, 0.80, cpu_seconds_per_update=2.0, **busy),
        a_run("asam", 1, 0.80, **busy),
    ]
    lines = summary.lines_of(runs, summary.scale_of(runs, None))
    assert [line.time for line in lines] == [1.0, 2.0, 9.0]


def test_the_front_is_what_nothing_beats() -> None:
    runs = [
        a_run("none", 1, 0.80),
        a_run("slow", 1, 0.79, seconds_per_update=3.0),
        a_run("good", 1, 0.85, seconds_per_update=2.5),
        a_run("equal", 1, 0.80, seconds_per_update=1.5),
    ]
    lines = summary.lines_of(runs, summary.scale_of(runs, None))
    assert [line.method for line in summary.front(lines)] == ["none", "good"]
    losses = summary.lines_of(runs, summary.scale_of(runs, "loss"))
    assert [line.method for line in summary.front(losses, less_is_better=True)] == ["none"]


@pytest.mark.parametrize(
    ("metrics", "wanted", "given", "name"),
    [
        ({"eval_loss": 1, "eval_f1": 0.5, "eval_accuracy": 0.5}, None, None, "eval_accuracy"),
        ({"eval_loss": 1, "eval_f1": 0.5, "eval_accuracy": 0.5}, "f1", None, "eval_f1"),
        ({"eval_loss": 1, "eval_f1": 0.5, "eval_accuracy": 0.5}, None, "loss", "eval_loss"),
        ({"eval_loss": 1, "eval_own": 3.0}, None, None, "eval_own"),
        ({"eval_loss": 1}, None, None, "eval_loss"),
        ({"eval_a_loss": 1}, None, None, "eval_a_loss"),
    ],
)
def test_the_metric(
    metrics: dict[str, float], wanted: str | None, given: str | None, name: str
) -> None:
    runs = [a_run("none", 1, 0.5, metrics=metrics, wanted=wanted)]
    assert choose_metric(runs, given) == name


def test_a_metric_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="--metric f1: the runs have in common eval_loss, "):
        choose_metric(some_runs(), "f1")


def test_a_loss_is_no_percentage_and_less_of_it_is_better() -> None:
    runs = [a_run("none", s, 0.8, metrics={"eval_loss": 0.5}) for s in range(3)]
    runs += [a_run("sam", s, 0.8, metrics={"eval_loss": 0.4 + s / 1000}) for s in range(3)]
    found = summary.summarise(runs, "hf-sam")
    assert (found["metric"], found["factor"], found["unit"]) == ("eval_loss", 1, "")
    assert found["settings"][0]["verdict"].startswith(
        "sam beats none: better in 3 of 3 seeds, −0.0"
    )


def finished(folder: Path, seed: int, sam: dict[str, Any], accuracy: float, **given: Any) -> Path:
    """Write what run_glue.py leaves behind."""
    folder.mkdir(parents=True)
    arguments = {"task_name": "sst2", "output_dir": str(folder), "seed": seed, "report_to": []}
    results = {
        "arguments": arguments | sam | given,
        "command": f"python glue_scripts/run_glue.py --seed {seed}",
        "versions": {"torch": "2"},
        "eval_accuracy": accuracy,
        "eval_loss": 0.4,
        "eval_runtime": 3.0,
        "eval max memory (MB)": 100.0,
        "seconds_per_update": 0.5,
        "memory/peak_mb": 90.0,
    }
    log = [{"epoch": 1.0, "loss": 0.7}, {"epoch": 2.0, "loss": 0.5}]
    (folder / "all_results.json").write_text(json.dumps(results))
    state = json.dumps({"log_history": log, "max_steps": 20})
    (folder / "trainer_state.json").write_text(state)
    return folder


def test_a_report_of_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the folders of run_glue.py to one page with everything in it."""
    tail = {"sam": "sam", "sam_rho": "lr:0.01", "sam_options": {"ascent_fraction": 0.25}}
    none = {"sam": "none", "sam_track_memory": True}
    folders = [
        str(finished(tmp_path / f"{gain}-{seed}", seed, sam, 0.5 + gain + seed / 100))
        for seed in (1, 2, 3)
        for sam, gain in ((none, 0.0), (tail, 0.1))
    ]
    assert cli.main(["report", *folders, "--output_dir", str(tmp_path / "page")]) == 0
    assert "sam:rho=lr:0.01,ascent_fraction=0.25 beats none" in capsys.readouterr().out
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    assert [line["method"] for line in results["settings"][0]["lines"]] == [
        "none",
        "sam:rho=lr:0.01,ascent_fraction=0.25",
    ]
    assert results["settings"][0]["lines"][1]["difference"]["mean"] == pytest.approx(10.0)
    page = (tmp_path / "page" / "report.html").read_text()
    assert_whole(page, results)


def assert_whole(page: str, results: dict[str, Any]) -> None:
    """The page holds all of its pictures, and asks for nothing that is not in it."""
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert page.count("<img") == page.count('alt="') == len(sources)
    said = re.sub("</?span>", "", page)  # words of a command are kept whole by spans
    for setting in results["settings"]:
        assert setting["verdict"] in page
        for run in setting["runs"]:
            assert run["command"] in said
    assert "width=device-width" in page


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "has no trainer_state.json"),
        (lambda folder: (folder / "all_results.json").write_text("{"), "cannot be read"),
    ],
)
def test_what_is_no_finished_run(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", 1, {"sam": "none"}, 0.5)
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        read_all([folder])


def test_best_epochs_are_not_compared(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", 1, {"sam": "none"}, 0.5, load_best_model_at_end=True)
    with pytest.raises(ValueError, match="kept its best epoch"):
        read_all([folder])


def test_a_run_is_given_once(tmp_path: Path) -> None:
    folders = [finished(tmp_path / name, 1, {"sam": "none"}, 0.5) for name in "ab"]
    with pytest.raises(ValueError, match="two runs of none have seed 1"):
        read_all(folders)


def test_names_are_escaped(tmp_path: Path) -> None:
    from hf_sam.compare.page import write_page

    runs = [*some_runs(), a_run("sam:where=<b>&", 1, 0.9)]
    page = write_page(summary.summarise(runs, "hf-sam <x>"), tmp_path).read_text()
    said = re.sub("</?span>", "", page)
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page and "hf-sam &lt;x&gt;" in said


def test_pictures_fit_a_column_and_need_no_colour(tmp_path: Path) -> None:
    from PIL import Image

    methods = [f"sam:rho={n}" for n in range(12)]
    runs = [a_run(m, s, 0.8) for m in ["none", *methods] for s in (1, 2)]
    results = summary.summarise(runs, "hf-sam")
    (drawn,) = pictures.draw_all(results, tmp_path)
    assert set(drawn) == {"difference", "pareto", "training", "scores", "sharpness"}
    for picture in drawn.values():
        with Image.open(tmp_path / picture["file"]) as image:
            assert image.width == pytest.approx(pictures.WIDTH * pictures.DOTS, abs=2)
    look = pictures.Look(["none", *methods])
    for mark in (True, False):
        looks = {tuple(sorted(look.of(m, mark).items())) for m in ["none", *methods]}
        assert len(looks) == 13


def test_curves_keep_the_epochs_that_all_seeds_have() -> None:
    x, values = pictures.shared([[[1.0, 5], [2.0, 6], [3.0, 7]], [[1.0, 1], [3.0, 2]]])
    assert (x, values) == ([1.0, 3.0], [[5, 1], [7, 2]])
