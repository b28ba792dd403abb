"""``python -m tools.bench``."""
