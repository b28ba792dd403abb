"""What a result was made by: the commit, the versions of packages, and the machine."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from brainq_torch import __version__

ROOT = Path(__file__).resolve().parents[1]
CODE = ("brainq_torch", "export", "tools")


def find_commit(*paths: str, root: Path = ROOT) -> str | None:
    """Return the commit that the checkout ``root`` is at, or that last changed ``paths``; None outside of one."""
    return _git(root, "log", "-1", "--format=%H", "--", *paths) or None


def is_dirty(root: Path = ROOT) -> bool:
    """Tell whether a file of ``CODE`` differs from the checkout's commit; False outside of one."""
    return bool(_git(root, "status", "--porcelain", "--", *CODE))


def _git(root: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def find_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of packages; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def describe_environment() -> dict[str, Any]:
    """Return what a result depends on: versions, platform, threads and the commit (null outside a checkout)."""
    import torch  # not for those that ask for the commit alone: it takes seconds to load

    packages = ("torch", "torchvision", "lightning", "numpy", "pillow", "scikit-learn")
    return {
        "brainq_torch": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": find_versions(packages),
        "commit": find_commit(),
        "command": " ".join(Path(sys.argv[0]).name if i == 0 else word for i, word in enumerate(sys.argv)),
    }
