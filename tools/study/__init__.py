"""``python -m tools.study``."""
