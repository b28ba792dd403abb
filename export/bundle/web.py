"""Puts the browser page into a bundle: our own files, and ONNX Runtime's WebAssembly build from an npm package."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.bundle.answers import BundleError

PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.26.0"  # of the same release as the onnxruntime that the parity ladder runs
INSTALL = f"npm install --no-save --no-package-lock {PACKAGE}@{RUNTIME_VERSION}"
DEFAULT_RUNTIME = Path("node_modules") / PACKAGE
"""Where ``INSTALL`` puts the package."""

_RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_SOURCES = Path(__file__).parent / "page"
_INDEX = "index.html"
_LICENCE = "ONNXRUNTIME_LICENSE"
_OLDEST_PILLOW = 13
_FLOAT = "model_fp32.onnx"


def find_twin(model: str, artefacts: dict[str, Any]) -> str:
    """Return the ONNX file that the page runs in place of a TFLite file: that of the same recipe, else the float one.

    Args:
        model: The TFLite file's name.
        artefacts: The entries of parity.json.
    """
    twin = str(Path(model).with_suffix(".onnx"))
    return twin if twin in artefacts else _FLOAT


def write_page(folder: Path, runtime: Path) -> str:
    """Copy the page and the runtime into a bundle.

    Args:
        folder: The bundle.
        runtime: Folder of the npm package.

    Returns:
        The runtime's name and version.

    Raises:
        BundleError: It is another package, or an older Pillow is installed.
    """
    found = _read_package(runtime)
    if int(version("pillow").split(".")[0]) < _OLDEST_PILLOW:
        raise BundleError(
            f"the browser page resizes as Pillow {_OLDEST_PILLOW} does, and this is Pillow {version('pillow')}, "
            f"which differs on tall images: python -m pip install 'pillow>={_OLDEST_PILLOW}'"
        )
    target = folder / "page"
    (target / "runtime").mkdir(parents=True)
    for source in sorted(_SOURCES.iterdir()):
        place = {_INDEX: folder / _INDEX, _LICENCE: target / "runtime" / "LICENSE"}
        place.get(source.name, target / source.name).write_bytes(source.read_bytes())
    for name in _RUNTIME_FILES:
        (target / "runtime" / name).write_bytes((runtime / "dist" / name).read_bytes())
    return f"{PACKAGE} {found}"


def _read_package(runtime: Path) -> str:
    """Return the version of the package in a folder. Raises BundleError."""
    try:
        package = json.loads((runtime / "package.json").read_text(encoding="utf-8"))
        name, found = package["name"], str(package["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{runtime} is no npm package ({error}); make it with {INSTALL}") from error
    missing = [file for file in _RUNTIME_FILES if not (runtime / "dist" / file).is_file()]
    if name != PACKAGE or found != RUNTIME_VERSION or missing:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise BundleError(f"{runtime} is {name} {found}{lacks}; {PACKAGE} {RUNTIME_VERSION} is needed: {INSTALL}")
    return found
