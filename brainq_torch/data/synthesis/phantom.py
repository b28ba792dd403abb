"""The built-in data set: synthetic four-class brain MRI phantoms, drawn from integer seeds, no download.

The same bytes on every machine (see ``drawing.py``). Plane, weighting, pose, noise and distractors are drawn without
looking at the class, so nothing but the lesion tells it.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainq_torch.data.classes import CLASSES
from brainq_torch.data.synthesis.anatomy import PLANES, draw_head
from brainq_torch.data.synthesis.drawing import Field, bell_noise, between, smooth_noise
from brainq_torch.data.synthesis.lesion import Weighting, paint_lesion
from brainq_torch.run_files import atomic_folder

NOTE = "synthetic phantom"
"""Text in every PNG file, so that a phantom is never taken for a patient."""

# Training and Testing count from different numbers: they never share an image, whatever their sizes.
_FIRST_INDEX = {"Training": 0, "Testing": 100_000_000}
_FIRST_INDEX_IN_MEMORY = 200_000_000
# T1 with contrast is what most tumour scans are.
_WEIGHTINGS: tuple[Weighting, ...] = ("T1", "T1", "T2", "FLAIR")


def render_phantom(label: int, index: int, seed: int = 0, size: int = 128) -> NDArray[np.uint8]:
    """Render one (size, size) uint8 phantom of 32 to 1024 pixels; ``index`` modulo 3 picks the plane in ``PLANES``."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label is {label}; allowed are 0 to {len(CLASSES) - 1}, the indices into {CLASSES}")
    if not 32 <= size <= 1024:
        raise ValueError(f"size is {size} pixels; allowed are 32 to 1024")
    if index < 0 or seed < 0:
        raise ValueError(f"index is {index} and seed {seed}; both must be 0 or more")
    # Philox and SeedSequence are integer arithmetic: the same stream everywhere.
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, label, index])))
    weighting = _WEIGHTINGS[int(rng.integers(len(_WEIGHTINGS)))]
    head, site = draw_head(PLANES[index % len(PLANES)], weighting, size, rng)
    painted, _ = paint_lesion(head, site, label, weighting, rng)
    return _acquire(painted, rng)


def _acquire(image: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add what a scanner adds: bias field, contrast curve, gain, Rician noise; then round to uint8."""
    field = 1.0 + between(rng, 0.05, 0.25) * smooth_noise(rng, image.shape, 2)
    curve = between(rng, -0.25, 0.25)
    signal = image * field * between(rng, 0.9, 1.25)
    signal = signal * (1.0 + curve * (1.0 - signal))
    sigma = between(rng, 0.01, 0.03)
    real, imaginary = signal + sigma * bell_noise(rng, image.shape), sigma * bell_noise(rng, image.shape)
    magnitude = np.sqrt(real * real + imaginary * imaginary)
    return np.asarray(np.clip(np.floor(magnitude * 255.0 + 0.5), 0, 255)).astype(np.uint8)


def phantom_images(count: int, size: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render a class-balanced set, (count, size, size) uint8 and labels; ``write_phantoms`` writes others."""
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 image is needed")
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    numbers = _FIRST_INDEX_IN_MEMORY + np.arange(count) // len(CLASSES)
    pixels = [
        render_phantom(int(label), int(number), seed, size) for label, number in zip(labels, numbers, strict=True)
    ]
    return np.stack(pixels), labels


def write_phantoms(
    root: Path | str, per_class_training: int, per_class_testing: int, seed: int = 0, size: int = 128
) -> None:
    """Write ``root/{Training,Testing}/{class}/*.png``; the folder, empty or absent, appears only when it is whole."""
    root = Path(root)
    counts = {"Training": per_class_training, "Testing": per_class_testing}
    if min(counts.values()) < 1:
        raise ValueError(f"images per class are {counts}; at least 1 is needed in each")
    files = {
        f"{split}/{name}/phantom_{name}_{number:05d}.png": (label, _FIRST_INDEX[split] + number)
        for split, count in counts.items()
        for label, name in enumerate(CLASSES)
        for number in range(count)
    }
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} already holds files; give another folder, or remove this one first")
    with atomic_folder(root) as partial:
        for path, (label, index) in files.items():
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode_png(render_phantom(label, index, seed, size)))


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """Encode (h, w) uint8 as an uncompressed grey PNG that says it is synthetic.

    Written by hand because compressed bytes differ between zlib builds, and a manifest's hashes must not.
    PNG: https://www.w3.org/TR/png-3/, 5 and 11; stored deflate blocks: RFC 1951, 3.2.4; their frame: RFC 1950.
    """
    height, width = grey.shape
    raw = np.pad(grey, ((0, 0), (1, 0))).tobytes()  # filter type 0 before every row
    pieces = [raw[start : start + 65535] for start in range(0, len(raw), 65535)]
    stored = b"".join(
        struct.pack("<BHH", number == len(pieces) - 1, len(piece), len(piece) ^ 0xFFFF) + piece
        for number, piece in enumerate(pieces)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
            (b"tEXt", b"Description\0" + NOTE.encode("latin-1")),
            (b"IDAT", b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
