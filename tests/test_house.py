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

SOURCE_LINES, TEST_LINES = 30_288, 21_752
