"""``python -m tools.low_bits``."""
