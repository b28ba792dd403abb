"""What an exported file says about itself: its classes, its pixels, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainq_torch import checksum
from brainq_torch.abstention.policy import Abstention
from brainq_torch.data.pixels import PixelSpec
from brainq_torch.run_files import BrainqError
from export.extra import import_extra
from export.graph import onnx_file
from export.graph.flatbuffer import FlatbufferError, add_buffer, read_model, schema, write_model

KEY = "brainq"
"""Name of the entry: an ONNX `metadata_props` key, a TFLite `Model.metadata` name. Its value is JSON, UTF-8."""

METADATA_FORMAT = 1
_FIELDS = frozenset({"format", "classes", "pixels", "provenance"})


class MetadataError(BrainqError):
    """A model file that does not say how it is to be fed."""


@dataclass(frozen=True)
class FileMetadata:
    """What a runner needs to feed a file and to name its answers, and what shows where the file came from.

    Attributes:
        classes: In logit order.
        pixels: How an image becomes the input.
        provenance: Plain data, no times and no paths, so that the same run exported twice gives the same bytes.
        abstention: When the file does not answer; None where that is not known.
    """

    classes: tuple[str, ...]
    pixels: PixelSpec
    provenance: dict[str, Any]
    abstention: Abstention | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        more = {"abstention": self.abstention.to_json()} if self.abstention else {}
        return {
            "format": METADATA_FORMAT,
            "classes": list(self.classes),
            "pixels": self.pixels.to_json(),
            "provenance": self.provenance,
            **more,
        }

    @classmethod
    def from_json(cls, data: Any, source: str) -> FileMetadata:
        """Rebuild from ``to_json``'s data. source: named in errors. Raises MetadataError when it is not ours."""
        if not isinstance(data, dict) or _FIELDS - data.keys():
            missing = sorted(_FIELDS - data.keys()) if isinstance(data, dict) else sorted(_FIELDS)
            raise MetadataError(f"{source}: the entry {KEY!r} lacks {missing}; export the file again")
        if data["format"] != METADATA_FORMAT:
            raise MetadataError(
                f"{source}: the entry {KEY!r} has format {data['format']}; this version reads {METADATA_FORMAT}"
            )
        classes = data["classes"]
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise MetadataError(f"{source}: classes are {classes!r}; need a list of names in logit order")
        if len(set(classes)) != len(classes):
            raise MetadataError(f"{source}: classes {classes} name one class twice")
        try:
            pixels = PixelSpec.from_json(data["pixels"])
        except (TypeError, ValueError) as error:
            raise MetadataError(f"{source}: pixels are {data['pixels']!r}: {error}") from error
        try:
            abstention = Abstention.from_json(data["abstention"]) if "abstention" in data else None
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise MetadataError(f"{source}: abstention is not as this version writes it: {error!r}") from error
        if not isinstance(data["provenance"], dict):
            raise MetadataError(f"{source}: provenance is {data['provenance']!r}; export the file again")
        return cls(tuple(classes), pixels, data["provenance"], abstention)


def write_onnx(path: Path, metadata: FileMetadata) -> None:
    """Put the metadata into an ONNX file, in place of any it has."""
    onnx = import_extra("onnx")
    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != KEY}
    onnx.helper.set_model_props(model, kept | {KEY: _dump(metadata)})
    path.write_bytes(model.SerializeToString(deterministic=True))


def read_onnx(path: Path) -> FileMetadata:
    """Read the metadata of an ONNX file. Raises MetadataError when the file is no ONNX model or has none of ours."""
    try:
        model = onnx_file.read_model(path)
    except onnx_file.OnnxFileError as error:
        raise MetadataError(str(error)) from error
    return _parse(next((entry.value for entry in model.metadata_props if entry.key == KEY), None), path)


def write_tflite(path: Path, metadata: FileMetadata) -> None:
    """Put the metadata into a TFLite file, in place of any it has."""
    model = read_model(path)
    content = _dump(metadata).encode()
    entries = model.metadata or []
    ours = next((entry for entry in entries if entry.name == KEY.encode()), None)
    if ours is not None:
        model.buffers[ours.buffer].data = np.frombuffer(content, np.uint8)
    else:
        model.metadata = [*entries, schema().MetadataT(name=KEY, buffer=add_buffer(model, content))]
    write_model(model, path)


def read_tflite(path: Path) -> FileMetadata:
    """Read the metadata of a TFLite file. Raises MetadataError when the file is no TFLite model or has none of ours."""
    try:
        model = read_model(path)
    except FlatbufferError as error:
        raise MetadataError(str(error)) from error
    entry = next((entry for entry in model.metadata or [] if entry.name == KEY.encode()), None)
    if entry is None:
        return _parse(None, path)
    try:
        text = bytes(np.asarray(model.buffers[entry.buffer].data, np.uint8))
    except (IndexError, TypeError) as error:
        raise MetadataError(f"{path}: the entry {KEY!r} cannot be read ({error}); export the file again") from error
    return _parse(text, path)


def read_metadata(path: Path) -> FileMetadata:
    """Read the metadata of an .onnx or .tflite file. Raises MetadataError."""
    metadata: FileMetadata = _of_suffix(path, {".onnx": read_onnx, ".tflite": read_tflite})(path)
    return metadata


def write_metadata(path: Path, metadata: FileMetadata) -> None:
    """Put the metadata into an .onnx or .tflite file, and with it a checksum of all that the file holds."""
    _of_suffix(path, {".onnx": write_onnx, ".tflite": write_tflite})(path, metadata)
    checksum.seal(path)


def _of_suffix(path: Path, functions: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    if path.suffix not in functions:
        raise MetadataError(f"{path} ends in {path.suffix!r}; allowed are {sorted(functions)}")
    return functions[path.suffix]


def _dump(metadata: FileMetadata) -> str:
    return json.dumps(metadata.to_json() | {checksum.KEY: checksum.UNSEALED}, sort_keys=True, ensure_ascii=False)


def _parse(text: str | bytes | None, path: Path) -> FileMetadata:
    if text is None:
        raise MetadataError(
            f"{path} does not say its classes and pixels: it has no metadata entry {KEY!r}. Export it with "
            "python -m export RUN, or, from Python, name them: load_runner(path, pixels=PixelSpec(...), classes=(...))"
        )
    try:
        data = json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8: protobuf hands out such a text as bytes
        raise MetadataError(f"{path}: the entry {KEY!r} is not JSON ({error}); export the file again") from error
    return FileMetadata.from_json(data, str(path))
