"""The scale of wide pixels, written down apart from the reader."""

import numpy as np


def rescaled(values: np.ndarray) -> np.ndarray:
    """Black is the darkest thousandth, white the brightest five-hundredth of what stands out by a tenth, hot or not."""
    ordered = np.sort(values, None).astype(float)
    low, bright = ordered[ordered.size // 1000], ordered[::-1][ordered.size // 200]
    head = ordered[ordered - low > (bright - low) / 10]
    head = head[head - low <= 2 * (head[::-1][head.size // 100] - low)]
    high = head[::-1][head.size // 500]
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
