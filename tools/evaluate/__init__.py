"""``python -m tools.evaluate``."""
