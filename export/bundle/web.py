"""Puts the browser page into a bundle: our own files, and ONNX Runtime's WebAssembly build and dicomParser from npm."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.bundle.answers import BundleError

PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.26.0"  # of the same release as the onnxruntime that the parity ladder runs
PARSER = "dicom-parser"
PARSER_VERSION = "1.8.21"
INSTALL = f"npm install --no-save --no-package-lock {PACKAGE}@{RUNTIME_VERSION} {PARSER}@{PARSER_VERSION}"
DEFAULT_RUNTIME = Path("node_modules") / PACKAGE
"""Where ``INSTALL`` puts the package; the other one lies beside it."""

_RUNTIME_FILES = ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")
_PARSER_FILES = ("dist/dicomParser.min.js", "LICENSE")
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


def find_runtime() -> Path | None:
    """Return ``DEFAULT_RUNTIME`` where ``INSTALL`` was run here."""
    return DEFAULT_RUNTIME if DEFAULT_RUNTIME.is_dir() and DEFAULT_RUNTIME.with_name(PARSER).is_dir() else None


def write_page(folder: Path, runtime: Path) -> str:
    """Copy the page and the runtime into a bundle.

    Args:
        folder: The bundle.
        runtime: Folder of ONNX Runtime's npm package, with that of the DICOM parser beside it.

    Returns:
        The runtime's name and version.

    Raises:
        BundleError: It is another package, or an older Pillow is installed.
    """
    parser = runtime.with_name(PARSER)
    _require_package(runtime, PACKAGE, RUNTIME_VERSION, _RUNTIME_FILES)
    _require_package(parser, PARSER, PARSER_VERSION, _PARSER_FILES)
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
    for source in (*(runtime / name for name in _RUNTIME_FILES), parser / _PARSER_FILES[0]):
        (target / "runtime" / source.name).write_bytes(source.read_bytes())
    (target / "runtime" / f"{PARSER}.LICENSE").write_bytes((parser / _PARSER_FILES[1]).read_bytes())
    return f"{PACKAGE} {RUNTIME_VERSION}"


def _require_package(folder: Path, wanted: str, needed: str, files: Sequence[str]) -> None:
    """Refuse a folder that is not that version of that package. Raises BundleError."""
    try:
        package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, found = package["name"], str(package["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder} is no npm package ({error}); make it with {INSTALL}") from error
    missing = [file for file in files if not (folder / file).is_file()]
    if name != wanted or found != needed or missing:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise BundleError(f"{folder} is {name} {found}{lacks}; {wanted} {needed} is needed: {INSTALL}")
