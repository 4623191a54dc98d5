# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.mutants`: does a test fail when a line of the mathematics is changed?

cosmic-ray's operators change one place each: an operator, a comparison, a number, a flow of
control. The seed decides which places and which change. Each mutant runs, in a fork that has the
libraries loaded, some of the quick tests that reach its line; which these are is measured with
coverage, once per file of tests. What no test notices is listed, and written down, so that the
next call goes on where this one ended.

cosmic-ray's own runner starts a process per mutant, of which nine tenths load torch and
transformers, and always runs the whole command; hence this one.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REACHED, FOUND = ROOT / "build" / "mutants-reached", ROOT / "build" / "mutants.json"
ROOMS = ["vector.py", "sweeps.py", "sums.py", "landscape", "parts", "methods", "engine"]
SEVERAL = {"fsdp2.py", "zero.py", "zero3.py"}
"""Of `engine`, what only processes of several ranks reach."""
TESTS = """
    laws/test_bare.py laws/test_sweeps.py laws/test_offload.py methods/test_references.py
    methods/test_numbers.py parts engine test_landscape.py test_parameters.py test_precision.py
""".split()
AT_MOST = 24
"""Tests per mutant, of each test function that reaches the line at least one."""
SECONDS = 300
"""After which a mutant counts as noticed: it runs for ever."""
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
SENSIBLE = re.compile(
    r"ReplaceBinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Add|Sub|Mul|Div)"
    r"|ReplaceBinaryOperator_(BitOr_BitAnd|BitAnd_BitOr|LShift_RShift)"
    r"|ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Eq|NotEq|Lt|LtE|Gt|GtE)"
    r"|ReplaceComparisonOperator_(Is_IsNot|IsNot_Is)|ReplaceUnaryOperator_(USub_UAdd|Delete_Not)"
    r"|AddNot|Replace(True|False|And|Or|Break|Continue)With\w+|NumberReplacer|ExceptionReplacer"
    r"|ZeroIterationForLoop|RemoveDecorator"
)
"""Changes that can pass for a slip; a shift of tensors, say, fails whatever the tests are."""
Lines = dict[str, dict[int, set[str]]]


class Reaches:
    """A plugin of pytest that notes which test reaches which line."""

    def __init__(self) -> None:
        import coverage

        source = [str(ROOT / "hf_sam")]
        self.coverage = coverage.Coverage(data_file=None, source=source, config_file=False)

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Name the test whose lines come now."""
        self.coverage.switch_context(item.nodeid)

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Return, by file and line, the tests."""
        data = self.coverage.get_data()
        return {
            str(Path(path).relative_to(ROOT)): {
                line: [test for test in tests if test]
                for line, tests in data.contexts_by_lineno(path).items()
            }
            for path in data.measured_files()
        }


def measure(tests: Path, into: Path) -> None:
    """Run a file of tests under coverage, and write what it reaches."""
    import pytest

    plugin = Reaches()
    plugin.coverage.start()
    pytest.main([*(option for option in OPTIONS if option != "-x"), str(tests)], plugins=[plugin])
    plugin.coverage.stop()
    into.write_text(json.dumps(plugin.lines()))


def reached(end: float) -> Lines:
    """Return which tests reach which lines; measure what was not measured before."""
    REACHED.mkdir(parents=True, exist_ok=True)
    found: Lines = defaultdict(lambda: defaultdict(set))
    chosen = [ROOT / "tests" / name for name in TESTS]
    for path in [f for p in chosen for f in (sorted(p.glob("test_*.py")) if p.is_dir() else [p])]:
        into = REACHED / f"{path.parent.name}-{path.stem}.json"
        if not into.is_file():
            if time.monotonic() > end:
                sys.exit(f"{into.stem} and what comes after it is not measured yet: once more")
            in_a_fork(lambda path=path, into=into: measure(path, into), quiet=False)
        for name, lines in json.loads(into.read_text()).items():
            for line, tests in lines.items():
                found[name][int(line)] |= set(tests)
    return found


def in_a_fork(work: Callable[[], Any], quiet: bool = True) -> int | None:
    """Return the exit status of some work in a process of its own; None if it takes too long."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if quiet:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
            status = int(work() or 0)
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS if quiet else float("inf")
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def places(path: Path) -> Iterator[list[tuple[str, int]]]:
    """Yield, for each place of a file, the sensible changes of it: (operator, occurrence)."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes = list(ast_nodes(get_ast(path.read_text())))
    found: dict[Any, list[tuple[str, int]]] = defaultdict(list)
    for name in plugins.operator_names():
        if SENSIBLE.fullmatch(name.removeprefix("core/")):
            operator = plugins.get_operator(name)()
            where = [place for node in nodes for place in operator.mutation_positions(node)]
            for i, place in enumerate(where):
                found[place].append((name, i))
    yield from found.values()


def mutated(source: str, name: str, occurrence: int) -> tuple[str, int] | None:
    """Return the changed source and the line; None if nothing that runs has changed."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    changed = mutate_code(source, plugins.get_operator(name)(), occurrence)
    if changed is None:
        return None
    try:
        if meaning(changed) == meaning(source):
            return None
    except SyntaxError:
        return None
    pairs = enumerate(zip(source.splitlines(), changed.splitlines(), strict=False), 1)
    return changed, next((i for i, (a, b) in pairs if a != b), 1)


class Bare(ast.NodeTransformer):
    """Leaves annotations out, which are never evaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def meaning(source: str) -> str:
    """Return what a program does, in a form to compare."""
    return ast.dump(Bare().visit(ast.parse(source)))


def tests_of(source: str, line: int, lines: dict[int, set[str]]) -> list[str]:
    """Return some tests that reach a line's statement, or its function if that runs at import."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    whole = (1, len(source.splitlines()))
    spans = sorted(((n.lineno, n.end_lineno or 0) for n in around), key=lambda s: s[1] - s[0])
    for first, last in [*((first, line) for first, _ in spans[:1]), *spans, whole]:
        found = set().union(*(lines.get(i, set()) for i in range(first, last + 1)))
        if found:
            return spread(sorted(found))
    return []


def spread(tests: list[str]) -> list[str]:
    """Return a part of the tests, with some of each function."""
    by_function: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        by_function[test.partition("[")[0]].append(test)
    groups = list(by_function.values())
    each = max(AT_MOST // len(groups), 1)
    return [test for some in groups for test in some[:: -(-len(some) // each)]]


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, path: Path, source: str) -> None:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self.module, self.path, self.source = module.removesuffix(".__init__"), path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Answer for that module alone."""
        if name != self.module:
            return None
        inside = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: Any) -> None:
        """Run the changed source."""
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def survives(path: Path, source: str, tests: list[str]) -> bool:
    """Run tests against a mutant; whether all of them pass."""

    def work() -> int:
        import pytest

        sys.meta_path.insert(0, Changed(path, source))
        return int(pytest.main([*OPTIONS, *tests]))

    return in_a_fork(work) == 0


def warm_up() -> None:
    """Import what is slow and not ours, once for all forks."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from transformers import BertForSequenceClassification, Trainer  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.startswith("hf_sam") for name in sys.modules)


def sources(words: list[str]) -> list[Path]:
    """Return the files of the rooms, or those of them whose path contains one of the words."""
    found = [ROOT / "hf_sam" / room for room in ROOMS]
    files = [f for p in found for f in (sorted(p.glob("*.py")) if p.is_dir() else [p])]
    files = [f for f in files if f.name not in SEVERAL]
    return [f for f in files if not words or any(word in str(f) for word in words)]


def main() -> None:
    """Try mutants until the time is over, and say how many were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only files whose path contains one of these")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=10**9, help="at most so many places")
    parser.add_argument("--again", action="store_true", help="try what survived again")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    warm_up()
    lines = reached(end)
    draw = random.Random(given.seed)
    todo = [(path, *draw.choice(changes)) for path in sources([]) for changes in places(path)]
    draw.shuffle(todo)
    known = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    for path, name, occurrence in todo[: given.sample]:
        if time.monotonic() > end:
            break
        place, source = str(path.relative_to(ROOT)), path.read_text()
        change = mutated(source, name, occurrence)
        if change is None or (given.words and not any(word in place for word in given.words)):
            continue
        text, line = change
        was, now = (s.splitlines()[line - 1].strip() for s in (source, text))
        key = f"{place}: {was} -> {now} ({name.removeprefix('core/')} {occurrence})"
        if key in known and not (given.again and known[key]):
            continue
        tests = tests_of(source, line, lines[place])
        known[key] = not tests or survives(path, text, tests)
        FOUND.write_text(json.dumps(known, indent=2))
        if known[key]:
            print(f"{place}:{line} ({len(tests)} tests)\n    - {was}\n    + {now}", flush=True)
    print(f"{len(known) - sum(known.values())} of {len(known)} killed; {len(todo)} places")


if __name__ == "__main__":
    main()
