"""``python -m tools.sources``."""
