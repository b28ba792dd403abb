"""Which images show the same picture, head or patient, and splits that keep them together."""
