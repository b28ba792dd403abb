"""Reads one slice of a NIfTI file, upright by the file's own orientation (the only file that knows nibabel).

A volume is shown by its middle axial slice; a file with one slice by that slice. Radiological convention, as DICOM
images are: the patient's right is on the left of the picture, anterior or superior is up, and in a sagittal slice
anterior is on the left.
"""

# mypy: allow-untyped-calls
# (nibabel says that it is typed, but most of its header's methods are not)

import gzip
from io import BufferedIOBase
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from brainq_torch.data.reading.grey import (
    COPY_AGAIN,
    FilePath,
    GreyImage,
    UnreadableImageError,
    make_square,
    refuse_gigantic,
    rescale_to_uint8,
    shrink_remedy,
)

_MAX_VOLUME_BYTES = 512 * 1024 * 1024
_MAX_EXTENSION_BYTES = 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_PLANES = ("sagittal", "coronal", "axial")  # by the world axis (x to the right, y forward, z up) across the slice


def read_nifti(path: FilePath) -> GreyImage:
    """Decode the one slice, or the middle axial slice, of a NIfTI-1 or NIfTI-2 file (.nii, .nii.gz) to grey.

    The slice is rescaled as all wide pixels are (``rescale_to_uint8``); voxels that are not square are stretched to
    squares; notes say so, and which slice is shown.

    Raises:
        UnreadableImageError: Header-only pairs (.hdr/.img), series of volumes, colour or complex voxels, truncated
            files, and volumes above 512 MiB, the size taken from the header before any voxel is read.
    """
    with _open(path) as file:
        kind, header = _read_header(path, file)
        shape = _volume_shape(path, header)
        _require_complete(path, file, header)
        file.seek(0)
        image = kind.from_stream(file)
        orientation, notes = _orientation(path, image)
        axis = _slice_axis(shape, orientation)
        index = shape[axis] // 2
        refuse_gigantic(path, *(side for other, side in enumerate(shape) if other != axis))
        flat = _read_slice(image, axis, index)
    sides = [other for other in range(3) if other != axis]
    values, spacings = _upright(flat.reshape([shape[side] for side in sides]), sides, orientation, header)
    grey, note = rescale_to_uint8(path, values, "NIfTI values")
    square, stretched = make_square(grey, *spacings)
    plane = _PLANES[int(orientation[axis, 0])]
    which = [f"{plane} slice {index + 1} of {shape[axis]} shown"] if shape[axis] > 1 else []
    return GreyImage(square, (*notes, *which, note, *stretched))


def _open(path: FilePath) -> BufferedIOBase:
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else open(path, "rb")


def _read_header(path: FilePath, file: BufferedIOBase) -> tuple[type[nibabel.Nifti1Image], nibabel.Nifti1Header]:
    """Read the fixed part of the header only: what follows it may be as long as the file says."""
    head = file.read(540)
    if len(head) < 348:
        raise UnreadableImageError(path, "is truncated within its NIfTI header", COPY_AGAIN)
    is_first = head[344:347] in (b"n+1", b"ni1")
    kind = nibabel.Nifti1Image if is_first else nibabel.Nifti2Image
    header = kind.header_class(head[:348] if is_first else head)
    if bytes(header["magic"].item())[:2] == b"ni":
        remedy = "save header and image as one .nii file"
        raise UnreadableImageError(path, "is one half of a NIfTI pair (.hdr/.img)", remedy)
    offset = float(header["vox_offset"])
    if not (348 if is_first else 540) < offset <= _MAX_EXTENSION_BYTES:
        raise UnreadableImageError(path, f"says that its voxels start at byte {offset:g}", COPY_AGAIN)
    return kind, header


def _volume_shape(path: FilePath, header: nibabel.Nifti1Header) -> tuple[int, int, int]:
    """Return the three sides of the volume; refuse what is no single volume of real numbers of bearable size."""
    shape = [int(side) for side in header.get_data_shape()]
    kind = header.get_data_dtype()
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise UnreadableImageError(path, f"has voxels of type {kind}; read are real numbers", "save one channel of it")
    if len(shape) < 2 or min(shape) < 1:
        raise UnreadableImageError(path, f"has shape {tuple(shape)}, which is no image", COPY_AGAIN)
    if any(side > 1 for side in shape[3:]):
        raise UnreadableImageError(path, f"has shape {tuple(shape)}, a series", "save the one volume that is meant")
    size_bytes = int(np.prod([float(side) for side in shape])) * kind.itemsize
    if size_bytes > _MAX_VOLUME_BYTES:
        raise UnreadableImageError(path, f"gigantic dimensions, {' x '.join(map(str, shape))} voxels", shrink_remedy())
    return shape[0], shape[1], shape[2] if len(shape) > 2 else 1


def _require_complete(path: FilePath, file: BufferedIOBase, header: nibabel.Nifti1Header) -> None:
    """Read all once in small pieces: a truncated or damaged file is noticed whichever slice is shown.

    Python looks at a gzip file's checksum at its end, and nibabel stops before it.
    """
    voxels = int(np.prod(header.get_data_shape()))
    left = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    file.seek(0)
    while left > 0:
        piece = file.read(min(_CHUNK_BYTES, left))
        if not piece:
            raise UnreadableImageError(path, f"is truncated, {left} bytes are missing", COPY_AGAIN)
        left -= len(piece)
    if isinstance(file, gzip.GzipFile) and len(file.read(_MAX_EXTENSION_BYTES + 1)) > _MAX_EXTENSION_BYTES:
        raise UnreadableImageError(path, "inflates to more than its header says (a decompression bomb)", COPY_AGAIN)


def _orientation(path: FilePath, image: nibabel.Nifti1Image) -> tuple[npt.NDArray[Any], list[str]]:
    """Return per array axis the world axis nearest to it and its direction, (3, 2); note when the file does not say."""
    orientation = io_orientation(image.affine)
    if not np.isfinite(orientation).all():
        raise UnreadableImageError(path, "has an orientation that makes no sense (its affine is singular)", COPY_AGAIN)
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        return orientation, ["no orientation in the file, taken as left, anterior, superior"]
    return orientation, []


def _slice_axis(shape: tuple[int, int, int], orientation: npt.NDArray[Any]) -> int:
    """Return the array axis across the slice: the one of a single slice, else the one nearest to head-foot."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    return single[-1] if single else int(np.flatnonzero(orientation[:, 0] == 2)[0])


def _read_slice(image: nibabel.Nifti1Image, axis: int, index: int) -> npt.NDArray[Any]:
    """Read one slice across an array axis, its scaling applied, without the rest of the volume."""
    dimensions = len(image.shape)
    picked: list[slice | int] = [slice(None) if other < 3 else 0 for other in range(dimensions)]
    if axis < dimensions:  # a file with two dimensions has no axis across its slice
        picked[axis] = index
    return np.asarray(image.dataobj[tuple(picked)])


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
