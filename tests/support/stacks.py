"""Writes DICOM series that hold several stacks under one SeriesInstanceUID, and those that look as if they did."""

from pathlib import Path

import numpy as np

from tests.brainq_torch.data.reading.test_dicom import STORED, group, write_dicom

AXIAL, CORONAL, SAGITTAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0, -1], [0.0, 1, 0, 0, 0, -1]
UP, OTHER = [0, 5, 10], [2.5, 7.5, 12.5, 17.5]


def stack(positions, axes=AXIAL, **tags):
    """Return the tags of a slice for each position in mm; a tag may be a function of the slice's number."""
    normal = np.cross(axes[:3], axes[3:])
    slices = []
    for number, position in enumerate(positions):
        place = {"ImagePositionPatient": [float(value) for value in normal * position], "ImageOrientationPatient": axes}
        said = {name: value(number) if callable(value) else value for name, value in tags.items()}
        slices.append({"AcquisitionNumber": 1, "StudyInstanceUID": "1.2"} | place | said)
    return slices


def tilted(number):
    """Return an orientation whose normal lies on either side of what rounds to one tenth."""
    tilt = 0.05 + (-1) ** number * 0.002
    return [1.0, 0, 0, 0, float(np.sqrt(1 - tilt**2)), tilt]


def two(name, one, other):
    """Return the slices of two stacks at the same positions, and the positions by the words that tell them apart."""
    words = ["\\".join(value) if isinstance(value, list) else value for value in (one, other)]
    return stack(UP, **{name: one}) + stack(UP, **{name: other}), {f"{name} {word}": UP for word in words}


def turned(degrees):
    """Return the orientation of a coronal view that is turned about the head's long axis."""
    angle = np.radians(degrees)
    return [float(np.cos(angle)), float(np.sin(angle)), 0.0, 0, 0, -1]


def alternate(number):
    return number % 2


def count(number):
    return number


SEVERAL = {
    "patients": two("PatientID", "A", "B"),
    "patients apart": (
        stack(UP, PatientID="A") + stack(OTHER, PatientID=""),
        {"PatientID A": UP, "PatientID unknown": OTHER},
    ),
    "patients one each": (
        stack([0], PatientID="007") + stack([5], PatientID="7"),
        {"PatientID 007": [0], "PatientID 7": [5]},
    ),
    "patients of one place": (
        stack([0, 0, 0], PatientID=lambda number: f"P{number}"),
        {f"PatientID P{number}": [0] for number in range(3)},
    ),
    "planes": (
        stack(UP) + stack(OTHER, CORONAL) + stack(UP, SAGITTAL),
        {"orientation axial": UP, "orientation sagittal": UP, "orientation coronal": OTHER},
    ),
    "echoes": two("EchoNumbers", 2, 1),
    "echoes apart": (
        stack(UP, EchoNumbers=1) + stack(OTHER, EchoNumbers=2),
        {"EchoNumbers 1": UP, "EchoNumbers 2": OTHER},
    ),
    "an echo cut short": (
        stack(UP, EchoTime=20) + stack(UP[:1], EchoTime="90.50"),
        {"EchoTime 20": UP, "EchoTime 90.5": UP[:1]},
    ),
    "phase": two("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "stacks": two("StackID", "1", "02"),
    "times": two("TemporalPositionIdentifier", 1, 2),
    "acquisitions": two("AcquisitionNumber", 1, 2),
    "diffusion": two("DiffusionBValue", 0, 1000),
    "series": two("SeriesNumber", 3, 301),
    "flip angles": two("FlipAngle", 5, 20.5),
    "repetition times": two("RepetitionTime", 500, 3000),
    "counted anew": (
        stack(UP, ContentTime="101010.5", InstanceNumber=count) + stack(UP, ContentTime="101020", InstanceNumber=count),
        {"ContentTime 101010.5": UP, "ContentTime 101020": UP},
    ),
    "a time each": (
        stack(UP * 2, AcquisitionTime=lambda number: f"10101{number}"),
        {"volume 1": UP, "volume 2": UP},
    ),
    "studies": two("StudyInstanceUID", "1.2", "1.3"),
    "nothing told": (stack(UP) + stack(UP), {"volume 1": UP, "volume 2": UP}),
    "numbered twice": (stack(UP * 2, AcquisitionNumber=count), {"volume 1": UP, "volume 2": UP}),
    "echoes of patients": (
        stack(UP, PatientID="A", EchoTime=20) + stack(UP, PatientID="A", EchoTime=90) + stack(UP, PatientID="B"),
        {"PatientID A, EchoTime 20": UP, "PatientID A, EchoTime 90": UP, "PatientID B": UP},
    ),
    "interleaved echoes": (
        stack(UP, EchoTime=20, AcquisitionNumber=alternate) + stack(UP, EchoTime=90, AcquisitionNumber=alternate),
        {"EchoTime 20": UP, "EchoTime 90": UP},
    ),
}
"""Name -> tags of each slice, and the positions of each stack by the words that tell it from the others."""

ONE = {
    "interleaved": stack(UP + OTHER, AcquisitionNumber=lambda number: 1 + number // 3),
    "slabs": stack([0, 1, 2, 3, 4, 5], StackID="1") + stack([5, 6, 7, 8, 9], StackID="2", AcquisitionNumber=2),
    "numbered": stack(UP + OTHER, AcquisitionNumber=count, EchoTime=lambda number: 20 + number / 100),
    "tilted": [tags | {"ImageOrientationPatient": tilted(number)} for number, tags in enumerate(stack([0, 5, 10, 15]))],
    "rotating": [stack([0], turned(24 * number))[0] for number in range(6)],
    "rotating finely": [stack([abs(18 - number)], turned(5 * number))[0] for number in range(36)],
    "all at one place": stack([0, 0, 0, 0], AcquisitionNumber=count),
    "an identifier each": stack(UP, PatientID=lambda number: f"P{number}"),
    "no position": [tags | {"ImagePositionPatient": None} for tags in stack(UP, AcquisitionNumber=count)],
    "no number": stack(UP, EchoTime=None, EchoNumbers=None, PatientID=None),
}
"""Name -> tags of each slice of one stack."""


UIDS = {name: f"1.9.{number}" for number, name in enumerate((*SEVERAL, *ONE))}


def write_stacks(folder: Path) -> None:
    """Write a folder for each, of files in any order."""
    for name, uid in UIDS.items():
        (folder / name).mkdir(parents=True)
        slices = SEVERAL[name][0] if name in SEVERAL else ONE[name]
        for number, file in enumerate(np.random.default_rng(0).permutation(len(slices))):
            said = {"SeriesInstanceUID": uid, "SeriesDescription": "T2", "InstanceNumber": number + 1}
            write_dicom(folder / name / f"IM{file}", STORED + number, **said | slices[number])


def write_enhanced(path: Path) -> dict[str, list[float]]:
    """Write a file of two echoes, magnitude and phase, at three positions; return these by what tells them apart."""
    frames, expected = [], {}
    for part in ("MAGNITUDE", "PHASE"):
        for echo in (20.0, 90.25):
            expected[f"ComplexImageComponent {part}, EchoTime {echo:g}"] = UP
            for position in UP:
                frames.append(group(
                    PlanePositionSequence=[group(ImagePositionPatient=[0.0, 0.0, float(position)])],
                    MREchoSequence=[group(EffectiveEchoTime=echo)],
                    MRImageFrameTypeSequence=[group(FrameType=["ORIGINAL", "PRIMARY"], ComplexImageComponent=part)],
                    FrameContentSequence=[group(FrameAcquisitionNumber=1 + position // 5, StackID="1")],
                ))  # fmt: skip
    shared = [group(PlaneOrientationSequence=[group(ImageOrientationPatient=AXIAL)])]
    stored = np.stack([STORED + number for number in range(len(frames))])
    write_dicom(path, stored, NumberOfFrames=len(frames), SeriesInstanceUID="1.2.3", ImageType=["ORIGINAL", "PRIMARY"],
                PerFrameFunctionalGroupsSequence=frames, SharedFunctionalGroupsSequence=shared)  # fmt: skip
    return expected
