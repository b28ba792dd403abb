"""Writes JPEG Lossless as no encoder at hand does: with each predictor, with restarts, with 16 bits."""

import numpy as np


def predict_pixel(values, row, column, above, selection, bits):
    """ITU-T T.81, H.1.2.1; above: whether a row may be predicted from that above it."""
    left, up = (values[row, column - 1] if column else 0), (values[row - 1, column] if above else 0)
    if not above or not column:
        return left if column else up if above else 1 << (bits - 1)
    corner = values[row - 1, column - 1]
    return {
        1: left, 2: up, 3: corner, 4: left + up - corner, 5: left + ((up - corner) >> 1),
        6: up + ((left - corner) >> 1), 7: (left + up) >> 1,
    }[selection]  # fmt: skip


def encode_lossless(stored: np.ndarray, selection: int, rows_to_restart: int = 0, bits: int = 12) -> bytes:
    """Encode (h, w) by ITU-T T.81, process 14: each difference's length in 5 bits. selection: the predictor."""
    height, width = stored.shape
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    lengths = b"\0\0\0\0\x11" + bytes(11) + bytes(range(17))
    stream = b"\xff\xd8\xff\xc3\0\x0b" + bytes([bits]) + sides + b"\1\1\x11\0\xff\xc4\0\x24\0" + lengths
    stream += b"\xff\xdd\0\4" + (rows_to_restart * width).to_bytes(2, "big")
    stream += b"\xff\xda\0\x08\1\1\0" + bytes([selection, 0, 0])
    values = stored.astype(int)
    for top in range(0, height, rows_to_restart or height):
        code = ""
        for row in range(top, min(height, top + (rows_to_restart or height))):
            for column in range(width):
                more = int(values[row, column] - predict_pixel(values, row, column, row > top, selection, bits))
                size = abs(more).bit_length()
                code += f"{size:05b}" + (f"{more if more > 0 else more + 2**size - 1:0{size}b}" if size else "")
        code += "1" * (-len(code) % 8)
        marker = b"\xff" + bytes([0xD0 + top // rows_to_restart % 8]) if rows_to_restart else b"\xff\xd9"
        stream += int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\0") + marker
    return stream[:-2] + b"\xff\xd9"
