"""Reads and writes the TFLite flatbuffer as plain objects (the schema that ships with LiteRT)."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainq_torch.run_files import BrainqError
from export.extra import import_extra

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of every TFLite file."""

_ALIGNMENT = 16
"""The schema's `force_align` of Buffer.data, in bytes."""


class FlatbufferError(BrainqError):
    """A file that is not a whole TFLite model."""


def schema() -> Any:
    """Return LiteRT's generated schema module (`ModelT`, `TensorT`, enumerations such as `BuiltinOperator`)."""
    return import_extra("ai_edge_litert.schema_py_generated")


def read_model(path: Path) -> Any:
    """Read a TFLite file into a `ModelT`.

    Raises FlatbufferError when it is something else, or cut short.
    """
    content = path.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise FlatbufferError(f"{path} is not a TFLite file: it lacks the mark {IDENTIFIER.decode()} at byte 4")
    try:
        return schema().ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise FlatbufferError(f"{path} is a damaged TFLite file ({error}); copy or export it again") from error


def write_model(model: Any, path: Path) -> None:
    """Write a `ModelT`. The same model gives the same bytes; constants lie at multiples of 16 bytes."""
    flatbuffers = import_extra("flatbuffers")
    aligned = _aligned_buffer_type()
    model.buffers = [aligned(buffer.data) for buffer in model.buffers]
    builder = flatbuffers.Builder(sum(length_of(buffer.data) for buffer in model.buffers) + 2**20)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())


def add_buffer(model: Any, content: bytes) -> int:
    """Append a constant to a `ModelT` and return its buffer index."""
    model.buffers.append(schema().BufferT(data=np.frombuffer(content, np.uint8)))
    return len(model.buffers) - 1


def remove_tensors(model: Any, indices: Sequence[int]) -> None:
    """Take tensors that no operator reads or makes out of a `ModelT`; the others are numbered anew."""
    graph, gone = model.subgraphs[0], set(indices)
    kept = [index for index in range(len(graph.tensors)) if index not in gone]
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}  # an input that an operator does without
    graph.tensors = [graph.tensors[index] for index in kept]
    for part in (graph, *graph.operators):
        part.inputs, part.outputs = ([place[int(index)] for index in ends] for ends in (part.inputs, part.outputs))
    for signature in model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = place[entry.tensorIndex]


def constant(model: Any, tensor: Any, dtype: Any) -> npt.NDArray[Any] | None:
    """Return a constant tensor's values, flat, or None for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    return None if length_of(data) == 0 else np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype)


def unpack_int4(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int8]:
    """Return the integers of a packed int4 constant, two in a byte, the first one in its lower half."""
    halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    integers: npt.NDArray[np.int8] = (halves ^ 8) - 8
    return integers


def operator_name(model: Any, operator: Any) -> str:
    """Return an operator's built-in name, such as ``CONV_2D``."""
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    names: dict[int, str] = {value: name for name, value in vars(schema().BuiltinOperator).items() if name[0] != "_"}
    return names[code]


def operator_code(model: Any, kind: str, version: int) -> int:
    """Return the index of a built-in operator in this version or a newer one, registering it where it is missing."""
    builtin = getattr(schema().BuiltinOperator, kind)
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version >= version:
            return index
    code = schema().OperatorCodeT(deprecatedBuiltinCode=builtin, version=version, builtinCode=builtin)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def length_of(data: Any) -> int:
    """Return how many values a vector of the schema has; an absent one none."""
    return 0 if data is None else len(data)


def _aligned_buffer_type() -> Any:
    """Return a `BufferT` that packs its data 16-byte aligned, which flatbuffers' own Python packer forgets."""
    generated = schema()

    class AlignedBuffer(generated.BufferT):  # type: ignore[misc, name-defined]
        def Pack(self, builder: Any) -> Any:  # the generated code's name
            """Write this buffer; an empty one has no data vector."""
            data = None
            if length_of(self.data):
                content = np.asarray(self.data, np.uint8).tobytes()
                builder.StartVector(1, len(content), _ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                builder.vectorNumElems = len(content)
                data = builder.EndVector()
            generated.BufferStart(builder)
            if data is not None:
                generated.BufferAddData(builder, data)
            return generated.BufferEnd(builder)

    return AlignedBuffer
