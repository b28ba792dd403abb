"""Says which version of the code a command is: a hash of what every module that it imports does.

A commit would change with every word of the README; here comments, docstrings and layout count for nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("brainq_torch", "export", "tools")


def hash_code(module: str, root: Path = ROOT) -> str:
    """Return the SHA-256 of a command and of everything of ours that it imports, wherever in a file the import stands.

    module: as after ``python -m``. Raises ModuleNotFoundError when it is none of ours.
    """
    start = next((name for name in (f"{module}.__main__", module) if _locate(root, name)), None)
    if start is None:
        raise ModuleNotFoundError(f"{module} is no command of ours under {root}")
    waiting, found = [start], dict[str, str]()
    while waiting:
        name = waiting.pop()
        path = _locate(root, name)
        if name in found or path is None:
            continue
        found[name], imported = _read(path)
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [*imported, *parents]
    return hashlib.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode()).hexdigest()


def _locate(root: Path, module: str) -> Path | None:
    place = root.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return a file's hash, and the names that may be modules which it imports."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(_imported(tree))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)
