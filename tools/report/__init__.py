"""``python -m tools.report``."""
