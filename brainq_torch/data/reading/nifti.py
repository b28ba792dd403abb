"""Reads slices of a NIfTI file, upright by the file's own orientation (the only file that knows nibabel).

As an image, a volume is shown by its middle axial slice; a file with one slice by that slice. Radiological convention,
as DICOM images are: the patient's right is on the left of the picture, anterior or superior is up, and in a sagittal
slice anterior is on the left.
"""

# mypy: allow-untyped-calls
# (nibabel says that it is typed, but most of its header's methods are not)

import gzip
import logging
import os
import threading
from functools import partial
from io import BufferedIOBase, BytesIO
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from brainq_torch.data.reading.grey import (
    FilePath,
    GreyImage,
    UnreadableImageError,
    make_square,
    refuse_gigantic,
    rescale_to_uint8,
    shrink_remedy,
)
from brainq_torch.data.reading.slices import PLANES, FileSlice

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
"""It names no file. What it mends: sizes of voxels that are 0 are taken as 1, negative ones as positive."""

_MAX_VOLUME_BYTES = 512 * 1024 * 1024
_MAX_EXTENSION_BYTES = 1024 * 1024
_MOST_VOLUMES = 8
"""Volumes of a 4-D file that are series of their own, as one of four contrasts is; more are one scan over time."""


def read_nifti(path: FilePath) -> GreyImage:
    """Decode the one slice, or the middle axial slice, of a NIfTI-1 or NIfTI-2 file to grey (.nii, .nii.gz, .hdr/.img).

    The slice is rescaled as all wide pixels are (``rescale_to_uint8``); voxels that are not square are stretched to
    squares; notes say so, and which slice is shown.

    Raises:
        UnreadableImageError: Headers without voxels, series of volumes, colour or complex voxels, truncated files, and
            volumes above 512 MiB, the size taken from the header before any voxel is read.
    """
    volume = _Volume(path)
    if volume.count > 1:
        shape = tuple(int(side) for side in volume.header.get_data_shape())
        raise UnreadableImageError(f"has shape {shape}, a series", "save the one volume that is meant")
    axis = volume.axis_across(None)
    count = volume.shape[axis]
    image = volume.read(axis, count // 2)
    plane = PLANES[int(volume.orientation[axis, 0])]
    which = [f"{plane} slice {count // 2 + 1} of {count} shown"] if count > 1 else []
    return GreyImage(image.pixels, (*volume.notes, *which, *image.notes[len(volume.notes) :]))


def list_nifti_slices(path: FilePath, plane: str | None = None) -> list[FileSlice]:
    """Return the slices of a volume, and of each volume of a 4-D file; its voxels are read once, with the first.

    Args:
        path: the file, of a pair its header.
        plane: one of ``PLANES``; without it axial, and a single slice's own plane.

    Raises:
        UnreadableImageError: As ``read_nifti`` does, but for several volumes.
    """
    volume, found = _Volume(path), []
    axis = volume.axis_across(plane)
    across = volume.header.get_best_affine()[int(volume.orientation[axis, 0])]
    middle = np.array([*((side - 1) / 2 for side in volume.shape), 1.0])
    for number in range(volume.count if volume.count <= _MOST_VOLUMES else 1):
        name = os.fspath(path) + (f"#{number + 1}" if volume.count > 1 else "")
        title = f"volume {number + 1} of {volume.count}" if volume.count > 1 else ""
        for index in range(volume.shape[axis]):
            middle[axis] = index
            position = round(float(across @ middle), 3)
            decode = partial(volume.read, axis, index, number)
            found.append(FileSlice(path, decode, name, title, (number, position, index), position))
    return found


class _Volume:
    """A NIfTI file, checked by its header; its bytes are kept once a slice was read.

    shape: sides of one volume. count: volumes in the file. orientation: nibabel's ``io_orientation``, (3, 2).
    """

    def __init__(self, path: FilePath) -> None:
        self._path, self._lock = path, threading.Lock()
        self._image: nibabel.Nifti1Pair | None = None
        self._fault: Exception | None = None
        with _open(path) as file:
            self._kind, self.header = _read_header(file)
        is_pair = self._kind in (nibabel.Nifti1Pair, nibabel.Nifti2Pair)
        self._files = {"header": path, "image": _voxels_of(path)} if is_pair else {"image": path}
        self.shape, self.count = _volume_shape(self.header)
        self.orientation, self.notes = _orientation(self.header)

    def axis_across(self, plane: str | None) -> int:
        """Return the array axis across the slices: that of a plane, else of a single slice, else nearest to up."""
        single = [axis for axis in range(3) if self.shape[axis] == 1]
        if plane is None and single:
            return single[-1]
        return int(np.flatnonzero(self.orientation[:, 0] == PLANES.index(plane or "axial"))[0])

    def read(self, axis: int, index: int, number: int = 0) -> GreyImage:
        """Decode one slice across an array axis of one of the volumes."""
        sides = [other for other in range(3) if other != axis]
        refuse_gigantic(*(self.shape[side] for side in sides))
        flat = _read_slice(self._load_once(), axis, index, number)
        flat = flat.reshape([self.shape[side] for side in sides])
        values, spacings = _upright(flat, sides, self.orientation, self.header)
        grey, note = rescale_to_uint8(values, "NIfTI values")
        square, stretched = make_square(grey, *spacings)
        return GreyImage(square, (*self.notes, note, *stretched))

    def _load_once(self) -> nibabel.Nifti1Pair:
        with self._lock:
            if self._fault:  # nobody inflates a damaged file again for each slice
                raise self._fault
            if self._image is None:
                try:
                    self._image = _load(self._files, self._kind, self.header)
                except Exception as error:
                    self._fault = error
                    raise
        return self._image


def _open(path: FilePath) -> BufferedIOBase:
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


def _read_header(file: BufferedIOBase) -> tuple[Any, nibabel.Nifti1Header]:
    """Read the fixed part of the header only: what follows it may be as long as the file says."""
    head = file.read(540)
    if len(head) < 348:
        raise UnreadableImageError("is truncated within its NIfTI header")
    is_first = head[344:347] in (b"n+1", b"ni1")
    is_pair = head[344:347] == b"ni1" or head[4:7] == b"ni2"
    alone, pair = (nibabel.Nifti1Image, nibabel.Nifti1Pair) if is_first else (nibabel.Nifti2Image, nibabel.Nifti2Pair)
    kind = pair if is_pair else alone
    header = kind.header_class(head[:348] if is_first else head[:540])
    offset = float(header["vox_offset"])
    if not (-1 if is_pair else 348 if is_first else 540) < offset <= _MAX_EXTENSION_BYTES:
        raise UnreadableImageError(f"says that its voxels start at byte {offset:g}")
    return kind, header


def _volume_shape(header: nibabel.Nifti1Header) -> tuple[tuple[int, int, int], int]:
    """Return the three sides of a volume and their number; refuse what is not of real numbers or of bearable size."""
    shape = [int(side) for side in header.get_data_shape()]
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise UnreadableImageError(f"has voxels of type {kind}; read are real numbers", "save one channel of it")
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableImageError(f"has shape {tuple(shape)}, which is no image")
    if np.prod([float(side) for side in shape]) * kind.itemsize > _MAX_VOLUME_BYTES:
        raise UnreadableImageError(f"gigantic dimensions, {' x '.join(map(str, shape))} voxels", shrink_remedy())
    return (shape[0], shape[1], shape[2] if len(shape) > 2 else 1), int(np.prod(shape[3:]))


def _load(files: dict[str, FilePath], kind: Any, header: nibabel.Nifti1Header) -> nibabel.Nifti1Pair:
    """Read the whole files once: a truncated or damaged one is noticed whichever slice is shown.

    Python looks at a gzip file's checksum at its end, and nibabel stops before it.
    """
    voxels = int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize
    held = {}
    for part, name in files.items():
        needed = 0 if part == "header" else int(header["vox_offset"]) + voxels
        with _open(name) as file:
            content = file.read(needed + _MAX_EXTENSION_BYTES + 1)
            if len(content) < needed:
                raise UnreadableImageError(f"is truncated, {needed - len(content)} bytes are missing", path=name)
            if isinstance(file, gzip.GzipFile) and len(content) > needed + _MAX_EXTENSION_BYTES:
                raise UnreadableImageError("inflates to more than its header says (a decompression bomb)", path=name)
        held[part] = nibabel.FileHolder(fileobj=BytesIO(content))
    image: nibabel.Nifti1Pair = kind.from_file_map(held)
    return image


def _voxels_of(path: FilePath) -> str:
    """Return the other half of a NIfTI pair (.hdr/.img)."""
    stem = os.fspath(path).removesuffix(".gz")
    ends = {".hdr": (".img", ".img.gz"), ".HDR": (".IMG", ".IMG.gz")}.get(stem[-4:], ())
    found = [stem[:-4] + end for end in ends if os.path.isfile(stem[:-4] + end)]
    if not found:
        remedy = "put its .img beside it, or save header and image as one .nii file"
        raise UnreadableImageError("is one half of a NIfTI pair (.hdr/.img)", remedy)
    return found[0]


def _orientation(header: nibabel.Nifti1Header) -> tuple[npt.NDArray[Any], list[str]]:
    """Return per array axis the world axis nearest to it and its direction, (3, 2); note when the file does not say."""
    orientation = io_orientation(header.get_best_affine())
    if not np.isfinite(orientation).all():
        raise UnreadableImageError("has an orientation that makes no sense (its affine is singular)")
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        return orientation, ["no orientation in the file, taken as left, anterior, superior"]
    return orientation, []


def _read_slice(image: nibabel.Nifti1Pair, axis: int, index: int, number: int) -> npt.NDArray[Any]:
    """Return one slice across an array axis, its scaling applied, without the rest of the volume."""
    picked: list[slice | int] = [slice(None)] * min(3, len(image.shape))
    if axis < len(picked):  # a file with two dimensions has no axis across its slice
        picked[axis] = index
    later = np.unravel_index(number, image.shape[3:], order="F") if len(image.shape) > 3 else ()
    return np.asarray(image.dataobj[(*picked, *map(int, later))])


def _upright(
    values: npt.NDArray[Any], sides: list[int], orientation: npt.NDArray[Any], header: nibabel.Nifti1Header
) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Turn a slice upright; return it with the distances between its rows and between its columns in mm.

    values: one axis for each array axis in ``sides``.
    """
    zooms = [float(zoom) for zoom in header.get_zooms()] + [1.0]
    spacing = [zooms[side] for side in sides]
    if orientation[sides[0], 0] < orientation[sides[1], 0]:  # the higher world axis goes up the picture
        values, sides, spacing = values.T, sides[::-1], spacing[::-1]
    # Rows run from superior or anterior down, columns from right or anterior on: against the world axis both times.
    for direction, side in enumerate(sides):
        if orientation[side, 1] > 0:
            values = np.flip(values, direction)
    return values, (spacing[0], spacing[1])
