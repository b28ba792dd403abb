"""``python -m tools.shift``."""
