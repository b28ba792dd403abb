"""``python -m tools.edge``."""
