"""Reads the figshare brain tumour data set's .mat files, MATLAB v7.3, which is HDF5 (the only file that knows h5py).

J. Cheng, Brain tumor dataset, figshare 1512427: 3064 T1-weighted contrast-enhanced slices of 233 patients; each file
holds a struct ``cjdata`` with image, label (1 meningioma, 2 glioma, 3 pituitary), PID, tumorBorder and tumorMask.
https://figshare.com/articles/dataset/brain_tumor_dataset/1512427
"""

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.reading.grey import (
    FilePath,
    GreyImage,
    Origin,
    UnreadableImageError,
    refuse_gigantic,
    rescale_to_uint8,
)

FIGSHARE_CLASSES: dict[int, str] = {1: "meningioma", 2: "glioma", 3: "pituitary"}
"""The data set's own label numbers; it has no images without a tumour."""

_MAX_TEXT = 256
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3  # HDF5 filter numbers; MATLAB writes no others


_ONE_AT_A_TIME = threading.Lock()
"""Chunks read directly by several threads at once fail now and then (H5Dread_chunk), whichever files they are of."""


def read_figshare(path: FilePath) -> GreyImage:
    """Decode ``cjdata/image`` to grey, rescaled as all wide pixels are (``rescale_to_uint8``).

    Raises:
        UnreadableImageError: Another .mat file, a gigantic or overfull data set, or values that are not finite.
    """
    with _open(path) as file:
        values = _read_array(file, "cjdata/image")
    # MATLAB stores column by column, so that HDF5 sees every matrix transposed.
    grey, note = rescale_to_uint8(values.T, "MATLAB values")
    return GreyImage(grey, (note,))


def read_figshare_origin(path: FilePath) -> Origin:
    """Return the label and the patient's pseudonym (``PID``), empty when the file has none.

    Raises:
        UnreadableImageError: The label is none of 1, 2, 3.
    """
    with _open(path) as file:
        label = _read_array(file, "cjdata/label").ravel()
        letters = _read_array(file, "cjdata/PID").ravel() if "cjdata/PID" in file else np.empty(0)
    number = int(label[0]) if label.size == 1 and np.isfinite(label).all() else None
    if number is None or number not in FIGSHARE_CLASSES or number != label[0]:
        allowed = ", ".join(f"{key} ({name})" for key, name in FIGSHARE_CLASSES.items())
        raise UnreadableImageError(f"has cjdata/label {label[:4].tolist()}; allowed are {allowed}")
    if letters.size > _MAX_TEXT:
        raise UnreadableImageError(f"has a PID of {letters.size} letters")
    patient = "".join(chr(int(letter)) for letter in letters).strip().strip("\x00")
    return Origin(CLASSES.index(FIGSHARE_CLASSES[number]), patient)


@contextmanager
def _open(path: FilePath) -> Iterator[h5py.File]:
    """Open the file and make sure that it is one of the data set's."""
    with open(path, "rb") as file:
        if file.read(14) == b"MATLAB 5.0 MAT":
            raise UnreadableImageError("is a MATLAB 5 file", "save it in MATLAB with save(..., '-v7.3')")
    with _ONE_AT_A_TIME, h5py.File(path, "r") as matlab:
        if not isinstance(matlab.get("cjdata", getlink=True), h5py.HardLink):  # a link may lead to other files
            if "minc-2.0" in matlab:
                raise UnreadableImageError("is a MINC volume", "convert it to NIfTI, e.g. with mnc2nii")
            remedy = "leave it out: other .mat files have no agreed place for an image"
            raise UnreadableImageError("is no figshare brain tumour file (it has no struct cjdata)", remedy)
        yield matlab


def _read_array(file: h5py.File, name: str) -> npt.NDArray[Any]:
    """Read a matrix of real numbers, after its size has been bounded from what HDF5 says of it."""
    group, _, member = name.rpartition("/")
    if not isinstance(file[group], h5py.Group) or member not in file[group]:
        raise UnreadableImageError(f"has no {name}")
    if not isinstance(file[group].get(member, getlink=True), h5py.HardLink):
        raise UnreadableImageError(f"has a link in place of {name}")
    matrix = file[name]
    if not isinstance(matrix, h5py.Dataset) or matrix.dtype.kind not in "iufb" or matrix.dtype.itemsize > 8:
        raise UnreadableImageError(f"has no matrix of real numbers in {name}")
    if matrix.ndim != 2 or min(matrix.shape) < 1:
        raise UnreadableImageError(f"has {name} of shape {matrix.shape}; allowed is (rows, columns)")
    refuse_gigantic(*matrix.shape)
    if matrix.is_virtual or matrix.external:
        raise UnreadableImageError(f"keeps {name} in other files")
    if matrix.chunks is not None:
        _refuse_bomb(matrix)
    values: npt.NDArray[Any] = matrix[()]
    return values


def _refuse_bomb(matrix: h5py.Dataset) -> None:
    """Inflate each stored chunk as far as it may go: HDF5 itself inflates to the end, however large that is."""
    rows, columns = matrix.chunks
    refuse_gigantic(rows, columns)
    pipeline = matrix.id.get_create_plist()
    filters = [pipeline.get_filter(index)[0] for index in range(pipeline.get_nfilters())]
    if filters.count(_DEFLATE) > 1 or not set(filters) <= {_DEFLATE, _SHUFFLE, _FLETCHER32}:
        raise UnreadableImageError(f"is stored with HDF5 filters {filters}", "save it again with MATLAB")
    if _DEFLATE not in filters:
        return
    chunk_bytes = rows * columns * matrix.dtype.itemsize
    for index in range(matrix.id.get_num_chunks()):
        stored = matrix.id.get_chunk_info(index)
        _, data = matrix.id.read_direct_chunk(stored.chunk_offset)
        if stored.filter_mask == 0 and len(zlib.decompressobj().decompress(data, chunk_bytes + 1)) > chunk_bytes:
            raise UnreadableImageError("inflates to more than its header says (a decompression bomb)")
