# SPDX-License-Identifier: Apache-2.0
"""`hf-sam tune`: what it tries, what it costs, what survives, and what it says in the end."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_sam import METHODS, cli
from hf_sam.arguments import build_method
from hf_sam.compare.jobs import Job
from hf_sam.compare.rows import Row, parse_rows
from hf_sam.tune import search as searching
from hf_sam.tune.command import budget, flags, with_split
from hf_sam.tune.search import RUNS, SECONDS, Budget, Search
from hf_sam.tune.space import RADII, candidates, grid
from tests.tune import launcher

SCRIPT = launcher.__file__
GIVEN = "sam:rho=0.02,looksam:rho=0.01,when=after:0.5"
LAUNCH = shlex.join([sys.executable, SCRIPT])


def begin(
    folder: Path, runs: int = 100, *words: str, seeds: int = 4, methods: str = "sam"
) -> Search:
    return Search(candidates(methods), seeds, [SCRIPT, *words], folder, Budget(runs, RUNS))


def make(search: Search, stop: int = 1000, told: bool = True) -> list[Job]:
    """Make runs one after the other without any process; return those that were handed out."""
    made: list[Job] = []
    while len(made) < stop and (job := search.take()) is not None:
        made.append(job)
        job.folder.mkdir(parents=True)
        try:
            record = launcher.record(list(job.words))
        except SystemExit as error:
            (job.folder / "log.txt").write_text(str(error))
        else:
            (job.folder / "run.json").write_text(json.dumps(record))
        if told:
            search.watch([], [SimpleNamespace(job=job, seconds=10.0)])
    return made


def seeds_of(made: Sequence[Job]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for job in made:
        found.setdefault(job.row.text, []).append(job.seed)
    return found


class TestSpace:
    def test_a_radius_is_tried_over_three_decades(self) -> None:
        plain, *others = candidates("sam").rows
        assert plain.text == "none"
        assert sorted(row.text for row in others) == sorted(f"sam:rho={r}" for r in RADII)
        ratios = [float(b) / float(a) for a, b in zip(RADII, RADII[1:], strict=False)]
        assert 2 <= min(ratios) and max(ratios) <= 10 / 3 + 1e-9
        assert (float(RADII[0]), float(RADII[-1])) == (1e-4, 0.2)

    def test_what_is_given_stays(self) -> None:
        texts = {row.text for row in candidates(GIVEN).rows}
        assert "sam:rho=0.02" in texts
        own = [text for text in texts if text.startswith("looksam")]
        assert all(text.startswith("looksam:rho=0.01,when=after:0.5") for text in own)
        ks = {"", "k=2", "k=10"}  # 5 is the default, which is left unsaid
        alphas = {"", "alpha=0.05", "alpha=0.3", "alpha=0.7"}
        both = {",".join(filter(None, pair)) for pair in itertools.product(ks, alphas)}
        assert {text.removeprefix(GIVEN.partition(",")[2]).strip(",") for text in own} == both

    @pytest.mark.parametrize("key", [key for key in METHODS if key != "none"])
    def test_every_value_that_a_method_names_is_tried_and_valid(self, key: str) -> None:
        """Each combination is built as a run builds it, and no value is left out."""
        methods = [
            build_method(SimpleNamespace(**row.arguments)) for row in candidates(key).rows[1:]
        ]
        for field in dataclasses.fields(METHODS[key]):
            if values := grid(field):
                named = {str(getattr(method, field.name)) for method in methods}
                assert named == {str(value) for value in values}
                default = getattr(METHODS[key](), field.name)
                assert field.name == "rho" or str(default) in values

    def test_an_option_that_is_given_may_rule_out_values(self) -> None:
        texts = [row.text for row in candidates("ssam_f:rho=0.01,pattern=2:4").rows]
        assert texts == ["none", "ssam_f:rho=0.01,pattern=2:4"], "2:4 is a sparsity of a half"

    def test_the_order_is_drawn_once(self) -> None:
        assert candidates("sam") == candidates("sam")
        assert candidates("sam").rows[1:] != candidates("sam", seed=1).rows[1:]

    def test_radii_come_first_and_then_what_is_near_the_best(self) -> None:
        space = candidates("sam,gsam")
        best = parse_rows("none,gsam:rho=0.01")[1]
        order: list[Row] = []
        while len(order) < len(space.rows) - 1:
            order.append(space.after([row.text for row in order], best))
        radii, near = order[: 2 * len(RADII)], order[2 * len(RADII) :][:3]
        assert not any(row.options for row in radii)
        assert {row.sam["sam_rho"] for row in near} == {"0.01"}
        assert {row.options["alpha"] for row in near} == {"0.1", "0.2", "0.6"}


class TestSearch:
    def test_it_finds_the_best_and_halves(self, tmp_path: Path) -> None:
        search = begin(tmp_path)
        seeds = seeds_of(make(search))
        assert seeds["none"] == seeds["sam:rho=0.003"] == [1, 2, 3, 4]
        assert search.best().text == "sam:rho=0.003"
        assert seeds["sam:rho=0.2"] == [1], "it is worse than none, and none is at every rung"
        assert sum(map(len, seeds.values())) < 4 * len(seeds) and len(seeds) == len(RADII) + 1

    def test_a_gain_is_to_the_plain_trainer_with_the_same_seed(self, tmp_path: Path) -> None:
        search = begin(tmp_path)
        make(search)
        row = search.best()
        assert search.gain(row, 1) == pytest.approx(0.0201)
        assert search.gain(row, 4) == pytest.approx(0.02025)

    def test_of_a_loss_less_is_better(self, tmp_path: Path) -> None:
        search = begin(tmp_path)
        search._wanted_metric = "loss"
        make(search)
        assert search.best().text == "sam:rho=0.003" and search.gain(search.best(), 4) > 0

    def test_the_budget_is_kept_and_a_larger_one_goes_on(self, tmp_path: Path) -> None:
        first = make(begin(tmp_path, 6))
        assert len(first) == 6 and [j.row.text for j in first[:4]] == ["none"] * 4
        assert make(begin(tmp_path, 6)) == []
        second = make(begin(tmp_path))
        whole = make(begin(tmp_path.with_name("whole")))
        assert [j.name for j in first + second] == [j.name for j in whole]

    def test_of_many_options_a_budget_tries_radii_first(self, tmp_path: Path) -> None:
        """Of 96 candidates, the eight radii run once before any other, then the better ones again.

        What is left of the budget tries options at the best radius.
        """
        search = begin(tmp_path, 24, methods="looksam")
        assert len(search.rows) == 1 + 8 * 3 * 4
        made = make(search)
        texts = list(dict.fromkeys(job.row.text for job in made))
        assert len(made) == 24 and texts[0] == "none"
        assert {*texts[1:9]} == {f"looksam:rho={radius}" for radius in RADII}
        assert [job.seed for job in made[:13]] == [1, 2, 3, 4] + [1] * 8 + [2]
        assert len(texts) > 9
        assert all(text.startswith("looksam:rho=0.003,") for text in texts[9:])

    def test_a_search_that_is_killed_goes_on(self, tmp_path: Path) -> None:
        """Whenever it dies, before or after it has heard of a run, none is made twice."""
        whole = [job.name for job in make(begin(tmp_path / "whole"))]
        for stop in (4, 13):
            folder = tmp_path / str(stop)
            made = make(begin(folder), stop - 1) + make(begin(folder), 1, told=False)
            assert [job.name for job in made + make(begin(folder))] == whole

    def test_time_is_a_budget_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of 100 seconds, nine runs of ten seconds and a bit fit."""
        now = [0.0]
        monkeypatch.setattr(searching, "time", SimpleNamespace(monotonic=lambda: now[0]))
        search = Search(candidates("sam"), 4, [SCRIPT], tmp_path, Budget(100.0, SECONDS))
        made: list[Job] = []
        while one := make(search, 1, told=False):
            now[0] += 11.0
            search.watch([], [SimpleNamespace(job=one[0], seconds=11.0)])
            made += one
        assert len(made) == 9 and search.seconds == 99.0

    def test_a_candidate_that_fails_is_dropped(self, tmp_path: Path) -> None:
        search = begin(tmp_path, 100, "--break_at", "0.003")
        seeds = seeds_of(make(search))
        assert seeds["sam:rho=0.003"] == [1]
        assert search.best().text in ("sam:rho=0.001", "sam:rho=0.01")

    def test_another_search_is_not_mixed_in(self, tmp_path: Path) -> None:
        make(begin(tmp_path), 1)
        with pytest.raises(ValueError, match="holds a search with 4 seeds among 9 candidates"):
            begin(tmp_path, seeds=3)
        with pytest.raises(ValueError, match="holds the runs of other arguments"):
            make(begin(tmp_path, 100, "--other"), 1)

    def test_a_budget_for_nothing(self, tmp_path: Path) -> None:
        search = begin(tmp_path, 4)
        make(search)
        with pytest.raises(ValueError, match="before a candidate was tried .4 runs"):
            search.best()


@pytest.fixture
def words(tmp_path: Path) -> Iterator[list[str]]:
    yield ["tune", "--output_dir", str(tmp_path / "out"), "--launch", LAUNCH, "--jobs", "4"]


class TestCommand:
    def test_the_end(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One line per run, a table, a page, and what to copy; all runs evaluate on the split."""
        methods = ["--methods", "sam:rho=0.003,sam:rho=0.1", "--budget", "8runs", "--seeds", "3"]
        assert cli.main([*words, *methods, "--", SCRIPT, "--help_by", "0.05"]) == 0
        said = capsys.readouterr().out
        assert "Best of 2 on a part of the training set: sam:rho=0.003, better in 3 of 3" in said
        assert "Arguments to copy: --sam sam --sam_rho 0.003\n" in said
        assert "hf-sam compare --methods none,sam:rho=0.003 --seeds 4,5,6,7,8 -- " in said
        out = tmp_path / "out"
        assert json.loads((out / "best.json").read_text()) == {"sam": "sam", "sam_rho": "0.003"}
        commands = [json.loads(p.read_text())["command"] for p in out.glob("runs/*/run.json")]
        assert len(commands) >= 7 and all("--train_val_split 0.2" in text for text in commands)
        assert "on a part of the training set" in (out / "report.html").read_text()

    def test_nothing_helps(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        methods = ["--methods", "sam:rho=0.003", "--budget", "6runs", "--seeds", "3"]
        assert cli.main([*words, *methods, "--", SCRIPT, "--help_by", "0"]) == 0
        said = capsys.readouterr().out
        assert "Nothing tells it from the plain Trainer, which costs least." in said
        assert "Arguments to copy: --sam none\n" in said

    def test_a_script_without_a_split(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        launch = shlex.join([sys.executable, "-c", "raise SystemExit('no --train_val_split')"])
        words[words.index(LAUNCH)] = launch
        assert cli.main([*words, "--budget", "3runs", "--", SCRIPT]) == 2
        said = capsys.readouterr().err
        assert "none, seed 1 failed: no --train_val_split" in said
        assert "a script that knows no such argument needs another --split" in said

    def test_a_split_of_the_users_own(self) -> None:
        split = ["--train_val_split", "0.2"]
        assert with_split(["s.py", "--a", "1"], split) == ["s.py", "--a", "1", *split]
        for own in (["s.py", "--train_val_split", "0.5"], ["s.py", "--train_val_split=0.5"]):
            assert with_split(own, split) == own

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("20runs", Budget(20, RUNS)),
            ("1run", Budget(1, RUNS)),
            ("90s", Budget(90.0, SECONDS)),
            ("1.5h", Budget(5400.0, SECONDS)),
        ],
    )
    def test_budgets(self, text: str, found: Budget) -> None:
        assert budget(text) == found

    @pytest.mark.parametrize("text", ["20", "0runs", "1.5runs", "-3m", "3 days"])
    def test_budgets_that_are_refused(self, text: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match="neither runs, as in 20runs"):
            budget(text)

    @pytest.mark.parametrize(
        ("methods", "message"),
        [
            ("sma", "'sma' is not a method"),
            ("none", "name a method besides none"),
            ("none:bf16=1,sam:bf16=1", "would change what it is compared with"),
            ("sam:rho=-1", "rho=-1"),
        ],
    )
    def test_methods_that_are_refused(
        self, words: list[str], methods: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*words, "--budget", "3runs", "--methods", methods, "--", SCRIPT]) == 2
        assert message in capsys.readouterr().err

    def test_flags(self) -> None:
        row = parse_rows("none,looksam:k=3,rho=lr:0.01")[1]
        assert flags(row.arguments) == "--sam looksam --sam_rho lr:0.01 --sam_options k=3"
