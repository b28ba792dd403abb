"""``python -m tools.doctor``."""
