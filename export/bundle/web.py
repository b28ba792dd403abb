"""Puts the browser page into a bundle: our own files, and from npm ONNX Runtime for WebAssembly, parsers, codecs."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.bundle.answers import BundleError

PACKAGE = "onnxruntime-web"
VERSIONS = {
    PACKAGE: "1.26.0",  # of the same release as the onnxruntime that the parity ladder runs
    "dicom-parser": "1.8.21",
    "geotiff": "3.0.5",  # its LZW and predictors
    "jpeg-lossless-decoder-js": "2.1.2",
    "@cornerstonejs/codec-charls": "1.2.7",  # JPEG-LS
    "@cornerstonejs/codec-openjpeg": "1.3.6",  # JPEG 2000
}
INSTALL = " ".join(["npm install --no-save --no-package-lock", *map("@".join, VERSIONS.items())])
DEFAULT_RUNTIME = Path("node_modules") / PACKAGE
"""Where ``INSTALL`` puts the package; the others lie beside it."""

FILES = {
    PACKAGE: {name: Path(name).name for name in ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")},
    "dicom-parser": {"dist/dicomParser.min.js": "dicomParser.min.js", "LICENSE": "dicom-parser.LICENSE"},
    "geotiff": {
        f"dist-module/{name}": f"geotiff/{name}"
        for name in ("compression/lzw.js", "compression/basedecoder.js", "predictor.js")
    }
    | {"LICENSE": "geotiff.LICENSE"},
    "jpeg-lossless-decoder-js": {"release/lossless-min.js": "lossless-min.js", "LICENSE": "lossless.LICENSE"},
    "@cornerstonejs/codec-charls": {
        f"dist/charlswasm_decode.{kind}": f"charlswasm_decode.{kind}" for kind in ("js", "wasm")
    }
    | {"LICENSE": "charls.LICENSE"},
    "@cornerstonejs/codec-openjpeg": {
        f"dist/openjpegwasm_decode.{kind}": f"openjpegwasm_decode.{kind}" for kind in ("js", "wasm")
    },
}
"""Package -> its files that a bundle gets, and their places in the bundle's ``page/runtime``."""
_SOURCES = Path(__file__).parent / "page"
_INDEX = "index.html"
_LICENCES = {"ONNXRUNTIME_LICENSE": "LICENSE", "CODECS_LICENSE": "codecs.LICENSE"}
"""Of packages that hold none, or another's code: where they stand in a bundle's ``page/runtime``."""
_OLDEST_PILLOW = 13
_FLOAT = "model_fp32.onnx"


def find_twin(model: str, artefacts: dict[str, Any]) -> str:
    """Return the ONNX file that the page runs in place of a TFLite file: of the same recipe, else the float one."""
    twin = str(Path(model).with_suffix(".onnx"))
    return twin if twin in artefacts else _FLOAT


def find_runtime() -> Path | None:
    """Return ``DEFAULT_RUNTIME`` where ``INSTALL`` was run here."""
    return DEFAULT_RUNTIME if all((DEFAULT_RUNTIME.parent / name).is_dir() for name in FILES) else None


def write_page(folder: Path, runtime: Path) -> str:
    """Copy the page and the runtime into a bundle.

    Args:
        folder: The bundle.
        runtime: Folder of ONNX Runtime's npm package, with the others of ``VERSIONS`` beside it.

    Returns:
        The runtime's name and version.

    Raises:
        BundleError: It is another package, or an older Pillow is installed.
    """
    packages = {name: runtime if name == PACKAGE else runtime.parent / name for name in VERSIONS}
    for name, package in packages.items():
        _require_package(package, name)
    if int(version("pillow").split(".")[0]) < _OLDEST_PILLOW:
        raise BundleError(
            f"the browser page resizes as Pillow {_OLDEST_PILLOW} does, and this is Pillow {version('pillow')}, "
            f"which differs on tall images: python -m pip install 'pillow>={_OLDEST_PILLOW}'"
        )
    target = folder / "page"
    (target / "runtime").mkdir(parents=True)
    places = {_INDEX: folder / _INDEX} | {name: target / "runtime" / place for name, place in _LICENCES.items()}
    for source in sorted(_SOURCES.iterdir()):
        places.get(source.name, target / source.name).write_bytes(source.read_bytes())
    for name, package in packages.items():
        copy_files(package, target / "runtime", name)
    return f"{PACKAGE} {VERSIONS[PACKAGE]}"


def copy_files(package: Path, target: Path, name: str) -> None:
    """Copy what a bundle gets of an npm package."""
    for source, place in FILES[name].items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_bytes((package / source).read_bytes())


def _require_package(folder: Path, wanted: str) -> None:
    """Refuse a folder that is not our version of that package. Raises BundleError."""
    try:
        package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, found = package["name"], str(package["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder} is no npm package ({error}); make it with {INSTALL}") from error
    needed = VERSIONS[wanted]
    missing = [file for file in FILES[wanted] if not (folder / file).is_file()]
    if name != wanted or found != needed or missing:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise BundleError(f"{folder} is {name} {found}{lacks}; {wanted} {needed} is needed: {INSTALL}")
