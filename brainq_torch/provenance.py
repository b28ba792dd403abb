"""Which version of the code makes a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("brainq_torch", "export", "tools")


def find_commit(*paths: str, root: Path = ROOT) -> str | None:
    """Return the commit of the checkout that this code is in.

    Args:
        *paths: Return the last commit that changed one of these instead, relative to the root.
        root: Folder of the checkout.

    Returns:
        The commit; None outside a checkout, or where there is no git.
    """
    return _git(root, "log", "-1", "--format=%H", "--", *paths) or None


def is_dirty(root: Path = ROOT) -> bool:
    """Return whether the code in the checkout differs from its commit; False outside one.

    Args:
        root: Folder of the checkout.

    Returns:
        True where a file of ``CODE`` was changed, added or removed and that is not committed.
    """
    return bool(_git(root, "status", "--porcelain", "--", *CODE))


def _git(root: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() if result.returncode == 0 else None
