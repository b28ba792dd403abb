"""``python -m tools.abstention``."""
