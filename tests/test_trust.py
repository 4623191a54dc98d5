# SPDX-License-Identifier: Apache-2.0
"""What SECURITY.md says is trusted: files of strangers are data, and bounded; code is asked for."""

from __future__ import annotations

import ast
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from glue_scripts import text_files
from glue_scripts.arguments import parse_arguments as glue
from glue_scripts.models import load_config_and_tokenizer
from glue_scripts.sources import _read_file
from hf_sam.estimate.command import model_of
from shared_scripts import arguments
from shared_scripts.errors import InputError
from shared_scripts.files import read_json
from tests.vision.conftest import picture, png
from vision_scripts.arguments import parse_arguments as images
from vision_scripts.folders import from_folder
from vision_scripts.models import load_config
from vision_scripts.tables import from_files

ROOT = Path(__file__).parents[1]
ROOMS = ("hf_sam", "glue_scripts", "shared_scripts", "vision_scripts")


# -- code -------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A model whose configuration is code of its own, which leaves a file when it runs."""
    folder = tmp_path / "model"
    folder.mkdir()
    code = f"""
from pathlib import Path
from transformers import PretrainedConfig

Path({str(tmp_path / "ran")!r}).touch()


class StrangeConfig(PretrainedConfig):
    model_type = "strange"
"""
    (folder / "strange.py").write_text(code)
    maps = {"AutoConfig": "strange.StrangeConfig"}
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": maps}))
    return folder


def load_glue(folder: Path, *words: str) -> None:
    own = ["--model_name_or_path", str(folder), "--task_name", "mrpc", "--output_dir", "out"]
    load_config_and_tokenizer(glue([*own, "--use_cpu", *words])[0])


def load_images(folder: Path, *words: str) -> None:
    own = ["--model_name_or_path", str(folder), "--train_dir", "x", "--output_dir", "out"]
    load_config(images([*own, "--use_cpu", *words])[0])


@pytest.mark.parametrize("load", [load_glue, load_images, lambda f: model_of(str(f))])
def test_code_of_a_model_does_not_run(trap: Path, load: Callable[[Path], Any]) -> None:
    with pytest.raises(ValueError, match="trust_remote_code|no configuration"):
        load(trap)
    assert not (trap.parent / "ran").exists()


def test_code_of_a_model_runs_where_it_is_trusted(trap: Path) -> None:
    """Or the test above could not fail."""
    load_images(trap, "--trust_remote_code")
    assert (trap.parent / "ran").exists()


def test_examples_run_no_code_of_a_model() -> None:
    """Left unsaid, transformers asks on the terminal; TRL and sentence-transformers say no."""
    calls = [
        call
        for path in (ROOT / "examples").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".from_pretrained")
    ]
    assert len(calls) > 4
    for call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False", ast.unparse(call)


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE = {
    *("torch.load", "np.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"),
}
UNSAFE_METHODS = {"read_pickle", "FileSystemReader"}  # the latter reads a pickle of torch's


def test_nothing_unpickles_or_runs_what_it_read() -> None:
    """In our own code; transformers loads pickled weights with `weights_only=True`."""
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 80
    found = [found for path in sources for found in unsafe(path.read_text(encoding="utf-8"))]
    assert found == []


def unsafe(text: str) -> list[str]:
    """The imports and calls in a source that can run code of the file that they read."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in UNSAFE_MODULES else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            risky = called in UNSAFE or called.rpartition(".")[2] in UNSAFE_METHODS
            found += [called] if risky else []
    return found


def test_the_check_of_sources_itself() -> None:
    text = (
        "import pickle as p\nfrom dill import load\ntorch.load(f)\nx.y.FileSystemReader(f)\neval(s)"
    )
    wrong = {"pickle", "dill", "torch.load", "x.y.FileSystemReader", "eval"}
    assert set(unsafe(text)) == wrong
    assert unsafe("model.eval()\nyaml.safe_load(f)\njson.load(f)\nmodule.load(x)") == []


# -- files of arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("deep.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("deep.yaml", "a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("bomb.yaml", "a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]", r"\*a is an alias"),
        ("code.yaml", "a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("large.json", '{"a": "' + "x" * 2**20 + '"}', "larger than 1024 KB"),
    ],
)
def test_a_file_of_arguments_is_bounded(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        arguments.read_file(tmp_path / name)


def test_a_file_of_results_that_is_too_deep_is_broken(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "all_results.json") == {}


# -- tables of texts --------------------------------------------------------------------------


def read(path: Path) -> Any:
    return _read_file(str(path), ("sentence1",), "label", str(path.parent / "cache")).data


def refused(path: Path, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_archive_under_another_name_is_not_unpacked(suffix: str, tmp_path: Path) -> None:
    text = b"sentence1,label\n" + b"good,1\n" * 9
    packed, zipped = tmp_path / f"gz{suffix}", tmp_path / f"zip{suffix}"
    packed.write_bytes(gzip.compress(text))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("train.csv", text)
    for path in (packed, zipped):
        refused(path, "packed file")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"sentence1": ' + "[" * 50_000 + "]" * 50_000 + "}",  # would end the process
        '{"sentence1": "a", "x": ' + '{"a": ' * 3000 + "1" + "}" * 3001,
        "[\n" * 200 + "]\n" * 200,
        '["]",\n' * 200,  # brackets in texts do not count
    ],
    ids=["lists", "objects", "over lines", "behind texts"],
)
def test_json_that_is_too_deep(text: str, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(text + "\n")
    refused(tmp_path / "deep.json", "nested more than 100 times")


def test_json_with_brackets_in_its_texts_is_read(tmp_path: Path) -> None:
    rows = [{"sentence1": '[{" \\' * 150, "label": n % 2, "tags": [["x"]]} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "rows.jsonl")["sentence1"][:] == [row["sentence1"] for row in rows]


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2**20)
    (tmp_path / "wide.csv").write_text("sentence1,label\n" + "a" * 2**20 + ",1\nb,0\n")
    refused(tmp_path / "wide.csv", "line 2 is longer than 1 MB")
    (tmp_path / "fits.csv").write_text("sentence1,label\n" + "a" * (2**20 - 9) + ",1\nb,0\n")
    assert len(read(tmp_path / "fits.csv")) == 2


# -- images -----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """An image that is in no folder which is given."""
    path = tmp_path / "private" / "photo.png"
    path.parent.mkdir()
    path.write_bytes(png(picture(0)))
    return path


def source_of(folder: Path, path: str) -> Callable[[], bytes]:
    """The reader of a row that names a file."""
    image = {"bytes": None, "path": path}
    Dataset.from_dict({"image": [image], "label": [0]}).to_parquet(folder / "table.parquet")
    file = str(folder / "table.parquet")
    words = ["--config_name", "vit", "--train_file", file, "--output_dir", "out", "--use_cpu"]
    return from_files([file], images(words)[1], str(folder / "cache")).images[0].read


def test_a_table_names_files_of_its_own_folder_only(tmp_path: Path, elsewhere: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    own = folder / "sub" / "own.png"
    own.write_bytes(png(picture(1)))
    (folder / "link.png").symlink_to(elsewhere)
    for path in ("sub/own.png", "sub/../sub/own.png", str(own)):
        assert source_of(folder, path)() == own.read_bytes()
    for path in (str(elsewhere), "../private/photo.png", "sub/../../private/photo.png", "link.png"):
        with pytest.raises(ValueError, match="not in the table's folder"):
            source_of(folder, path)()


def test_links_out_of_a_folder_are_said(
    tmp_path: Path, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        path = tmp_path / "data" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number)))
    (tmp_path / "data" / "class0" / "inner.png").symlink_to(path)
    from_folder(tmp_path / "data", "--train_dir")
    assert "lead out" not in caplog.text
    (tmp_path / "data" / "class0" / "outer.png").symlink_to(elsewhere)
    assert len(from_folder(tmp_path / "data", "--train_dir").images) == 6
    assert "1 links lead out of this folder, such as" in caplog.text
    assert "outer.png" in caplog.text
