"""The bounds of the house that no linter has: sizes, repetition, and where tests lie.

ruff holds the rest (print, docstrings, complexity), import-linter the layers: see `make lint`.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "rest_megatron"
TREES = ("rest_megatron", "kernels", "tools", "examples", "benchmarks", "tests")
# Code beside the package that has unit tests too.
OTHER_TESTED = {"kernels", "tools", "examples", "benchmarks"}
# A Triton kernel is one function, however long.
KERNELS = ROOT / "kernels" / "rest_kernels" / "triton_backend"
FLAT_MODULES = 9
FILE_LINES = 300
LOOP_LINES = 130
FUNCTION_LINES = 50
REPEATED_LINES = 6


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """Every Python file and its text."""
    return {path: path.read_text() for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))}


@pytest.fixture(scope="module")
def trees(sources) -> dict[Path, ast.Module]:
    return {path: ast.parse(text) for path, text in sources.items()}


def functions(tree: ast.Module):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imports(tree: ast.Module):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_few_modules_lie_flat_in_the_package():
    assert len(list(PACKAGE.glob("*.py"))) <= FLAT_MODULES


def test_no_file_is_long(sources):
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    long = [place(path, lines) for path, lines in lengths.items() if lines > FILE_LINES]
    assert not long, "\n".join(long)
    assert lengths[PACKAGE / "train.py"] <= LOOP_LINES


def test_no_function_is_long(trees):
    long = [
        f"{place(path, node.lineno)} {node.name}"
        for path, tree in trees.items()
        if not path.is_relative_to(KERNELS)
        for node in functions(tree)
        if node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_no_run_of_lines_is_repeated(sources, trees):
    seen = defaultdict(list)
    for path, text in sources.items():
        # Imports and signatures say again what others say, by their nature.
        declared = {n for node in imports(trees[path]) for n in range(node.lineno, node.end_lineno + 1)}
        for node in functions(trees[path]):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            declared |= set(range(first, node.body[0].lineno))
        lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip() and n not in declared]
        for i in range(len(lines) - REPEATED_LINES + 1):
            numbers, run = zip(*lines[i : i + REPEATED_LINES], strict=True)
            seen[run].append(place(path, numbers[0]))
    repeated = [" = ".join(places) for places in seen.values() if len(places) > 1]
    assert not repeated, "\n".join(repeated)


def test_no_test_imports_a_test_module(trees):
    names = {
        place(path, node.lineno): [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        for path, tree in trees.items()
        for node in imports(tree)
    }
    imported = {where: ".".join(words) for where, words in names.items() if where.startswith("tests")}
    assert [where for where, name in imported.items() if any(w.startswith("test_") for w in name.split("."))] == []


def test_unit_tests_mirror_the_packages():
    packages = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("*.py")}
    assert sorted(map(str, (f for f in folders - packages if f.parts[0] not in OTHER_TESTED))) == []
