# SPDX-License-Identifier: Apache-2.0
"""README: its commands run in small, its numbers are those of `benchmarks/results`."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from benchmarks.costs import costs
from hf_sam import cli, launch
from hf_sam.compare.jobs import check_script
from hf_sam.compare.rows import parse_rows
from tests.glue.conftest import pairs, tiny_model
from tests.vision.conftest import TINY, picture, table

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command that is shown."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


COMMANDS = list(commands(TEXT))
OURS = [words[1:] for words in COMMANDS if words[0] == "hf-sam"]


# -- its form ---------------------------------------------------------------------------------


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", TEXT)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_its_badges_are_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Python {oldest}+" in TEXT and f"python-{oldest}%2B-" in TEXT
    assert project["license"] == "Apache-2.0" and "Licence Apache-2.0" in TEXT


def test_its_python_runs() -> None:
    """The block on other trainers runs in `test_foreign.py`, with its trainers."""
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "trl" not in b]
    assert blocks
    for block in blocks:
        exec(block, {})


# -- its commands -----------------------------------------------------------------------------


def test_what_is_not_ours_exists() -> None:
    """Extras for pip, targets of make; `make demo` runs what the two commands of README promise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = [words for words in COMMANDS if words[0] != "hf-sam"]
    assert [words[0] for words in others] == ["pip", "make", "make"]
    assert others[0][1:] == ["install", "hf-sam[glue]"]
    assert set(re.findall(r"\[(\w+)\][, ]", TEXT)) | {"glue"} <= {*project["optional-dependencies"]}
    for target, runs in (("demo", "vision_scripts.demo"), ("test", "pytest -n 2")):
        assert ["make", target] in others
        dry = ["make", "--dry-run", "--assume-old=.venv/.installed", target]
        done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
        assert runs in done.stdout, done.stderr


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_our_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parsers that they meet, whole, without running them."""
    if words[0] not in launch.SCRIPTS:
        args = cli._parser().parse_args(words)
        if words[0] == "compare":
            assert args.script[:2] == ["--", "glue"]
            check_script([str(launch.path_of("glue")), *args.script[2:]])
            assert [row.method for row in parse_rows(args.methods)] == ["none", "sam", "looksam"]
        return
    from glue_scripts.arguments import parse_arguments as glue
    from vision_scripts.arguments import parse_arguments as images

    ran: list[Sequence[str]] = []
    monkeypatch.setattr(launch, "_run", lambda path, rest: ran.append(rest) or 0)
    monkeypatch.setattr(launch, "_launch", lambda config, given, path, rest: ran.append(rest) or 0)
    assert cli.main(words) == 0
    (glue if words[0] == "glue" else images)([*ran[0], "--use_cpu"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What stands for the model and the data of a command, and makes it small."""
    root = tmp_path_factory.mktemp("small")
    tiny_model(root / "bert")
    (root / "glue" / "mrpc").mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_dict(pairs(16)).to_parquet(root / "glue" / "mrpc" / f"{split}.parquet")
    for number in range(12):
        path = root / "images" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    table(12).to_parquet(root / "train.parquet")
    steps = ["--max_steps", "2", "--use_cpu", "--report_to", "none"]
    vit = "hidden_size=8,num_hidden_layers=1,num_attention_heads=1,intermediate_size=8"
    tables = ["--train_file", str(root / "train.parquet"), "--validation_file"]
    return {
        "instead": {
            "bert-base-cased": str(root / "bert"),
            "DIR": str(root / "images"),
            "ddp": "ddp_cpu",
            "5": "1",
        },
        "glue": [*steps, "--data_dir", str(root / "glue")],
        "recipe": [*steps, *tables, str(root / "train.parquet"), "--config_overrides", TINY],
        "images": [*steps, "--config_overrides", f"patch_size=4,{vit}"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_our_commands_run(words: list[str], small: dict[str, Any], tmp_path: Path) -> None:
    found = [small["instead"].get(word, word) for word in words]
    if "glue" in words:
        found += small["glue"]
    elif words[0] == "images":
        found += small["recipe" if "--recipe" in words else "images"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "hf_sam.cli", *found]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if words[0] in ("glue", "images"):
        assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_loss"] > 0
    assert words[0] != "compare" or (tmp_path / "outputs/compare/report.html").is_file()


# -- its numbers ------------------------------------------------------------------------------


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def scores(name: str, setting: str) -> dict[int, float]:
    """Percent by seed."""
    lines = read(name)["settings"][0]["lines"]
    line = next(line for line in lines if line["method"] == setting)
    return dict(zip(line["seeds"], line["scores"], strict=True))


def gain(name: str, setting: str) -> str:
    plain, own = scores(name, "none"), scores(name, setting)
    found = [own[seed] - plain[seed] for seed in own]
    return f"{statistics.fmean(found):+.1f} ± {statistics.stdev(found):.1f}"


def cost_rows() -> Iterator[str]:
    result = read("methods-minilm-mrpc")
    found, p = costs(result), result["parameter_bytes"]
    times = {key: f"{cost.ratio:.2f}" for key, cost in found.items()}
    command = "`python -m benchmarks.methods ...`"
    yield (
        f"| time of an update, MiniLM on a CPU | 1 | {times['sam']}; `looksam` "
        f"{times['looksam']}, `late_sam` {times['late_sam']} | {command} |"
    )
    extra = {key: cost.extra for key, cost in found.items()}
    assert extra["none"] == 0 and extra["sam"] == pytest.approx(p, rel=0.01)
    yield (
        f"| memory beyond `none` | 0 | one copy of the trained weights, {p / 2**20:.0f} MB; "
        f"`looksam` {extra['looksam'] / p:.0f} copies | the same |"
    )


def demo_row() -> str:
    result = read("demo-images")
    assert result["setting"]["label_noise"] == 0.3 and result["setting"]["sam_rho"] == 0.1
    by_method = {
        method: [r["validation_accuracy"] for r in result["runs"] if r["method"] == method]
        for method in result["methods"]
    }
    none, sam = by_method["none"], by_method["sam"]
    better = sum(s > n for s, n in zip(sam, none, strict=True))
    return (
        f"| digits, 30 % wrong labels, from scratch, rho 0.1 | {spread(none)} % | {spread(sam)} %, "
        f"better in {better} of {len(sam)} seeds | `make demo` |"
    )


def radius_row(name: str, what: str) -> str:
    study = f"radius-{name}"
    plain, own = (list(scores(study, setting).values()) for setting in ("none", "sam:rho=0.01"))
    return (
        f"| {what}, MiniLM, rho 0.01, {len(own)} seeds | {spread(plain)} | {spread(own)} "
        f"({gain(study, 'sam:rho=0.01')}) | `python -m benchmarks.studies {study}` |"
    )


def noise_row() -> str:
    found = [scores("evidence-sst2-noise40", method) for method in ("none", "sam:rho=0.05")]
    seeds = sorted(set(found[0]) & set(found[1]))
    none, sam = ([one[seed] for seed in seeds] for one in found)
    gains = [s - n for n, s in zip(none, sam, strict=True)]
    better = sum(g > 0 for g in gains)
    return (
        "| SST-2, 1,000 phrases, 40 % wrong labels, MiniLM, 10 epochs, rho 0.05, "
        f"{len(seeds)} seeds | {spread(none)} % | {spread(sam)} % "
        f"({statistics.fmean(gains):+.1f} ± {statistics.stdev(gains):.1f}, better in {better}) | "
        "`python -m benchmarks.studies evidence-sst2-noise40` |"
    )


def table_of_results() -> list[str]:
    """The table as it must be; what is printed when it is not."""
    return [
        *cost_rows(),
        demo_row(),
        noise_row(),
        radius_row("mrpc", "MRPC, accuracy in %"),
    ]


def test_its_table_is_what_was_measured() -> None:
    after = TEXT.split("| measured | `none` | `sam` | command |\n|---|---|---|---|\n")[1]
    assert after.splitlines()[:5] == table_of_results()


def test_its_sentence_on_the_textbook_radius() -> None:
    sentence = (
        f"The textbook radius of 0.05 *loses* on MRPC: {gain('radius-mrpc', 'sam:rho=0.05')} points"
    )
    assert sentence in TEXT


def test_no_gain_in_fine_tuning_is_beyond_noise() -> None:
    """What README says of the radius that it recommends, as long as it is so."""
    for name in ("radius-cola", "radius-mrpc"):
        plain, own = scores(name, "none"), scores(name, "sam:rho=0.01")
        differences = [own[seed] - plain[seed] for seed in own]
        assert abs(statistics.fmean(differences)) < 2 * statistics.stdev(differences)
