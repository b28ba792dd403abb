"""The rules that keep the house simple: sizes, circles, and where a thing may stand."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("brainq_torch", "export", "tools")
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for name in PACKAGES
    for path in sorted((ROOT / name).rglob("*.py"))
}
TREES = {file: ast.parse(text) for file, text in FILES.items()}

SOURCE_LINES, TEST_LINES = 31_590, 22_637
"""Raising one is a visible line in a diff: new capabilities raise it by what they need."""

FILES_OF_A_FOLDER, LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 12, 300, 40, 6

ONLY_IN = {
    r"(?<!fx\.)\bInterpreter\(|\bInferenceSession\(": {
        "export/run/sessions.py", "tools/edge/tflm_worker.py",
    },
    r"\bos\.(replace|rename)\(": {"brainq_torch/run_files.py", "export/folder.py"},
    r"</(p|td|tr|table|div|html|h[1-6])>": set(),
}  # fmt: skip
"""What opens a model, replaces a file or writes HTML, and the files in which that is done."""

EXCEPTIONS: dict[str, set[str]] = {}
"""Rule -> what breaks it today; the aim is none."""


def functions():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}:{node.name}", node


def long_functions():
    return {name for name, node in functions() if node.end_lineno - node.lineno >= LINES_OF_A_FUNCTION}


def wide_functions():
    """Constructors are configuration: the command line is read from them."""
    wide = set()
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        wide |= {name} if count > PARAMETERS and node.name != "__init__" else set()
    return wide


def long_files():
    return {file for file, text in FILES.items() if len(text.splitlines()) > LINES_OF_A_FILE}


def crowded_folders():
    counts = Counter(file.rpartition("/")[0] for file in FILES if not file.endswith("__init__.py"))
    return {folder for folder, count in counts.items() if count > FILES_OF_A_FOLDER}


def double_class_names():
    names = Counter(node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {name for name, count in names.items() if count > 1}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles():
    """What is left once files that need none of the rest, or that none of the rest needs, are taken away."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
    needs = {module: set(imported(TREES[file])) & modules.keys() - {module} for module, file in modules.items()}
    while ends := {m for m in needs if not needs[m] & needs.keys() or not any(m in needs[o] for o in needs)}:
        for module in ends:
            del needs[module]
    return set(needs)


def hidden_imports():
    """Of the project, for types alone or in a function.

    Four may: the facade and the optional readers load lazily, a bundle's predict.py checks its folder before anything
    in it runs, and the bench's worker measures its engine's import.
    """
    may = {
        "brainq_torch/__init__.py", "brainq_torch/data/reading/image.py", "export/bundle/predict.py",
        "tools/bench/worker.py",
    }  # fmt: skip
    return {
        file
        for file, tree in TREES.items()
        if file not in may
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.If)
        for node in ast.walk(outer)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
    }


def posix_only():
    """What imports, as soon as it is loaded, a module that Windows does not have."""
    absent = {"fcntl", "grp", "pwd", "resource", "termios"}
    return {
        file
        for file, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not absent.isdisjoint([getattr(node, "module", ""), *(alias.name for alias in node.names)])
    }


RULES = (
    long_functions,
    wide_functions,
    long_files,
    crowded_folders,
    double_class_names,
    circles,
    hidden_imports,
    posix_only,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    assert rule() <= EXCEPTIONS.get(rule.__name__, set())


@pytest.mark.parametrize("pattern", ONLY_IN)
def test_some_things_are_done_in_one_place(pattern):
    places = {file for file, text in FILES.items() if re.search(pattern, text)}
    assert places <= ONLY_IN[pattern]


def test_source_and_tests_stay_below_their_limits():
    assert sum(len(text.splitlines()) for text in FILES.values()) <= SOURCE_LINES
    tests = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert sum(len(text.splitlines()) for text in tests) <= TEST_LINES
