"""``python -m tools.adapt``."""
