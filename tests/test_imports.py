# SPDX-License-Identifier: Apache-2.0
"""Imports run one way, methods stay free of engines, and `import hf_sam` stays light."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hf_sam"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

# sweeps <- sums <- vector <- landscape <- parts <- methods <- arguments <- trainer <- cli; a room
# may always import itself. `engine` implements what `landscape` asks for, `host` is the guest of a
# Trainer; `callbacks` and `sharpness` only read.
ALL = {
    *("sweeps", "sums", "vector", "landscape", "parts", "methods", "texts", "arguments"),
    *("engine", "host", "callbacks"),
}
MAY_IMPORT = {
    "sweeps": set(),
    "sums": {"sweeps"},
    "vector": {"sweeps", "sums"},
    "landscape": {"sweeps", "sums", "vector"},
    "parts": {"sweeps", "sums", "vector", "landscape"},
    "methods": {"sweeps", "sums", "vector", "landscape", "parts"},
    "texts": {"parts"},
    "prices": {"methods"},
    "arguments": {"sweeps", "sums", "vector", "landscape", "parts", "methods", "texts"},
    "engine": {"sweeps", "sums", "vector", "landscape", "__version__"},
    "host": {"sweeps", "sums", "vector", "landscape"},
    "callbacks": {"sweeps", "sums", "vector", "landscape", "sharpness"},
    "sharpness": {"sweeps", "sums", "vector", "landscape"},
    "launch": {"parts"},
    "environment": {"launch", "__version__"},
    "compare": {"launch", "parts", "methods", "texts", "arguments", "callbacks", "sharpness"},
    "tune": {"parts", "methods", "texts", "compare"},
    "estimate": {"sweeps", "landscape", "methods", "texts", "arguments", "compare"},
    "run": ALL,
    "trainer": {*ALL, "run", "__version__"},
}
OUTERMOST = {"__init__", "__main__", "cli", "pages"}  # may import every room
MATHEMATICS = {"sweeps", "sums", "vector", "landscape", "parts", "methods"}
OPTIONAL = {"datasets", "evaluate", "matplotlib", "peft", "scipy", "sklearn"}


def module_name(path: Path) -> str:
    """The dotted name of a file: `hf_sam/parts/when.py` is `hf_sam.parts.when`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The part of the house that a module belongs to: `hf_sam.parts.when` is in `parts`."""
    return (module.split(".") + ["__init__"])[1]


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """The absolute names of everything imported: `from ..parts import when` counts as both."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without its function bodies and `if TYPE_CHECKING:` blocks."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return Drop().visit(tree)


def wrong_arrows(source: str, path: Path) -> list[str]:
    """The imports of our own package that go against the direction."""
    here = room(module_name(path))
    if here in OUTERMOST:
        return []
    ours = [name for name in imports(ast.parse(source), path) if name.split(".")[0] == PACKAGE]
    return [name for name in ours if room(name) not in MAY_IMPORT[here] | {here}]


def foreign(source: str, path: Path) -> set[str]:
    """Names imported from other distributions when the module is loaded."""
    names = set(imports(at_import_time(ast.parse(source)), path))
    return {n for n in names if n.split(".")[0] not in {PACKAGE, *sys.stdlib_module_names}}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    assert wrong_arrows(path.read_text(), path) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_each_file_is_in_a_known_room(path: Path) -> None:
    assert room(module_name(path)) in OUTERMOST | set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_methods_and_parts_know_no_engine(path: Path) -> None:
    if room(module_name(path)) not in MATHEMATICS - {"sweeps", "sums", "vector"}:
        banned = ()
    else:
        banned = ("accelerate", "transformers", "torch.distributed")
    found = set(imports(ast.parse(path.read_text()), path))
    assert not [name for name in found if name.startswith(banned)]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_core_dependencies_load_with_a_module(path: Path) -> None:
    """What an extra brings is imported where it is used, or its users could not do without it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {dependency.split(">=")[0] for dependency in project["dependencies"]}
    assert {name.split(".")[0] for name in foreign(path.read_text(), path)} <= core


def test_the_package_imports_no_script() -> None:
    scripts = {"benchmarks", "glue_scripts", "shared_scripts", "tests", "vision_scripts"}
    found = {n for path in FILES for n in imports(ast.parse(path.read_text()), path)}
    assert not {name for name in found if name.split(".")[0] in scripts}
    assert len(FILES) > 10


@pytest.mark.parametrize(
    ("room_of", "line", "wrong"),
    [
        ("methods/sam.py", "from hf_sam.trainer import SAMTrainer", True),
        ("methods/sam.py", "from ..trainer import SAMTrainer", True),
        ("methods/sam.py", "from .. import engine", True),
        ("methods/sam.py", "def f():\n    import hf_sam.arguments", True),
        ("methods/sam.py", "from hf_sam import SAM", True),
        ("methods/sam.py", "from . import asam", False),
        ("methods/__init__.py", "from .sam import SAM", False),
        ("methods/sam.py", "from ..parts.radius import radius", False),
        ("vector.py", "from .landscape import Landscape", True),
        ("trainer.py", "from .engine import choice", False),
        ("cli.py", "from .trainer import SAMTrainer", False),
    ],
)
def test_the_check_itself(room_of: str, line: str, wrong: bool) -> None:
    assert bool(wrong_arrows(line, ROOT / PACKAGE / room_of)) is wrong


def test_the_check_of_load_time_imports_itself() -> None:
    source = "import torch.nn\ndef f():\n    import peft\nif TYPE_CHECKING:\n    import datasets\n"
    assert foreign(source, ROOT / PACKAGE / "cli.py") == {"torch.nn"}


ACCELERATORS = ("cuda", "mps", "xpu", "npu")


def unguarded(source: str) -> list[str]:
    """Uses of one kind of accelerator outside an `if` that names it."""

    def walk(node: ast.AST, known: str) -> Iterator[str]:
        if isinstance(node, (ast.If, ast.IfExp)):
            yield from walk(node.test, known)
            body = node.body if isinstance(node.body, list) else [node.body]
            other = node.orelse if isinstance(node.orelse, list) else [node.orelse]
            for inner, names in ((body, known + ast.unparse(node.test)), (other, known)):
                for one in inner:
                    yield from walk(one, names)
            return
        if isinstance(node, ast.Attribute) and node.attr in ACCELERATORS and node.attr not in known:
            yield ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, known)

    return list(walk(ast.parse(source), ""))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_accelerator_is_taken_for_granted(path: Path) -> None:
    """`torch.cuda.x()` and `tensor.cuda()` stand where it is known that there is one."""
    assert unguarded(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.cuda.synchronize()", ["torch.cuda"]),
        ("x = y.cuda()", ["y.cuda"]),
        ("if torch.cuda.is_available():\n    torch.cuda.synchronize()", ["torch.cuda"]),
        ("if kind == 'cuda':\n    torch.cuda.synchronize()", []),
        ("if kind == 'cuda':\n    pass\nelse:\n    torch.cuda.synchronize()", ["torch.cuda"]),
        ("f = torch.mps.x if 'mps' in kinds else None", []),
    ],
)
def test_the_check_of_accelerators_itself(source: str, found: list[str]) -> None:
    assert unguarded(source) == found


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_stays_light() -> None:
    """Names are loaded at first use: `import hf_sam` needs neither torch nor transformers."""
    loaded = loaded_by("import hf_sam")
    assert PACKAGE in loaded
    assert not loaded & ({"accelerate", "torch", "transformers", "numpy"} | OPTIONAL)


def test_help_stays_light() -> None:
    """`hf-sam --help` starts without torch, so that it answers at once."""
    loaded = loaded_by(
        "import sys, contextlib\n"
        "from hf_sam.cli import main\n"
        "sys.argv = ['hf-sam', '--help']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    assert not loaded & ({"accelerate", "torch", "transformers"} | OPTIONAL)


def test_methods_need_no_trainer() -> None:
    """A method in a hand-written loop brings torch and nothing of the Hugging Face stack."""
    loaded = loaded_by("from hf_sam import METHODS, Landscape, Vector")
    assert "torch" in loaded
    assert not loaded & ({"accelerate", "transformers"} | OPTIONAL)


def test_every_public_name_resolves() -> None:
    import hf_sam

    assert {"SAMTrainer", "SAMTrainingArguments", "SAMMixin", "Landscape", "Vector", "METHODS"} <= (
        set(hf_sam.__all__)
    )
    assert all(getattr(hf_sam, name) is not None for name in hf_sam.__all__)


def test_the_version_stands_in_one_place() -> None:
    """The package's own; the build reads it there, and what cites it repeats it."""
    import hf_sam

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == "hf_sam/__init__.py"
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == hf_sam.__version__
