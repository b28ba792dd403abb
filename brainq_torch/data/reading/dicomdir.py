"""Says which images a DICOMDIR names, and whether it is whole."""

import os
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial, read_sequence_item

from brainq_torch.data.reading.dicom_header import NO_LENGTH, ONE_AT_A_TIME
from brainq_torch.data.reading.grey import FilePath

_RECORDS = 0x00041220


def list_dicomdir(path: FilePath) -> tuple[list[str], bool]:
    """Return the images that a DICOMDIR names (PS3.3 F.3), whichever case their names have on this disk.

    Returns:
        The images, and whether the directory is whole: of one that is not, those that it still names.
    """
    found = []
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records, is_whole = _read_records(path)
        for record in records:
            kind, name = str(record.get("DirectoryRecordType") or ""), record.get("ReferencedFileID")
            if kind == "IMAGE" and name:
                found.append(_find(Path(path).parent, [name] if isinstance(name, str) else list(name)))
            elif "IMAGE".startswith(kind):  # its type is cut, or its name
                is_whole = False
    return found, is_whole


def _read_records(path: FilePath) -> tuple[list[pydicom.Dataset], bool]:
    """Return the records, and whether each begins where the one before ends, and the last ends where all of them do.

    pydicom takes what is left of a sequence for all of it, and whatever stands in the place of an item for one.
    """
    with open(path, "rb") as file:
        header = read_partial(file, lambda tag, *more: tag == _RECORDS)
        head, stored = file.read(8 if header.original_encoding[0] else 12), file.read()
    implicit, little = map(bool, header.original_encoding)
    order: Literal["little", "big"] = "little" if little else "big"
    item, stop, end = ((0xFFFE).to_bytes(2, order) + tag.to_bytes(2, order) for tag in (0xE000, 0xE00D, 0xE0DD))
    length, stream = int.from_bytes(head[-4:], order), BytesIO(stored)
    records: list[pydicom.Dataset] = []
    place, last, is_whole = 0, -1, bool(head)
    while True:
        if not stored.startswith(item, place):
            if place == length or (length == NO_LENGTH and stored.startswith(end, place)):
                return records, is_whole
            place, is_whole = stored.find(item, last + 1), False
            if place < 0:
                return records, False
        stream.seek(place)
        record = pydicom.Dataset()
        with suppress(OSError):  # cut within its first bytes
            record = read_sequence_item(stream, implicit, little, header.original_character_set) or record
        records.append(record)
        size, last = int.from_bytes(stored[place + 4 : place + 8], order), place
        if size != NO_LENGTH:
            place += 8 + size
        elif stored.startswith(stop, stream.tell() - 8) and _is_one(record, stored.count(item, place, stream.tell())):
            place = stream.tell()
        else:
            place += 1


def _is_one(record: pydicom.Dataset, items: int) -> bool:
    """Tell a record that ends with a delimiter from one that lost it and goes on with the next. items: begun in it."""
    elements = [element for tag in sorted(record.keys()) if (element := record.get_item(tag, keep_deferred=True))]
    places = [one.value_tell if isinstance(one, RawDataElement) else one.file_tell or 0 for one in elements]
    holds_items = any(one.VR == "SQ" for one in elements)
    return places == sorted(places) and elements[-1].tag.group < 0xFFFE and (items == 1 or holds_items)


def _find(folder: Path, parts: list[str]) -> str:
    for part in parts:
        same = [part]
        if not os.path.lexists(folder / part):
            with suppress(OSError):  # what is wrong is said of the image
                same = [name for name in os.listdir(folder) if name.upper() == part.upper()] or same
        folder /= same[0]
    return str(folder)
