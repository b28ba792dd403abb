"""``python -m tools.audit``."""
